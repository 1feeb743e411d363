package rawsock

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"holdfast/lab"
)

func openBoth(t *testing.T, h *lab.Host, name string) (s *Socket, n *Neighbors) {
	t.Helper()
	must(t, h.Do(func() error {
		l, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		i := Interface{Index: l.Index, Name: l.Name, MAC: l.HardwareAddr}
		if s, err = Open(i, false); err != nil {
			return err
		}
		n, err = OpenNeighbors(i)
		return err
	}))
	t.Cleanup(func() { _, _ = s.Close(), n.Close() })
	return s, n
}

func TestSocketsOfADeletedInterfaceFailAndOfANewOneWork(t *testing.T) {
	node, _ := wire(t)
	src, dst := netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("224.0.0.18")
	for range 2 {
		ip(t, node, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
		for _, args := range [][]string{{"link", "set", "v0", "up"}, {"link", "set", "v1", "up"}, {"address", "add", "10.2.0.1/24", "dev", "v0"}} {
			ip(t, node, args...)
		}
		s, n := openBoth(t, node, "v0")
		must(t, s.Join(dst))
		must(t, s.Send([]byte("x"), src, dst))
		must(t, n.Announce(src))
		ip(t, node, "link", "del", "v0")
		if err := s.Send([]byte("x"), src, dst); err == nil {
			t.Error("an advert was sent on an interface that is gone")
		}
		if err := n.Announce(src); err == nil {
			t.Error("an announcement was sent on an interface that is gone")
		}
		p := poller(t, s, n)
		for range 5 { // what it reports must not keep the thread busy
			_, err := p.Wait(time.Now().Add(time.Millisecond))
			must(t, err)
			_, _ = s.Receive(make([]byte, 100))
			_, _ = n.Receive()
		}
		deadline := time.Now().Add(30 * time.Millisecond)
		if ready, err := p.Wait(deadline); err != nil || len(ready) > 0 {
			t.Errorf("it still wakes: %v, %v", ready, err)
		}
	}
}

func TestInterfaceThatWasDownIsHeardAgain(t *testing.T) {
	node, peer := wire(t)
	ours, theirs := neighbors(t, node), neighbors(t, peer)
	a := netip.MustParseAddr("10.1.0.101")
	must(t, ours.Watch([]netip.Addr{a}))
	ip(t, node, "link", "set", "eth0", "down")
	if _, err := ours.Receive(); err != ErrEmpty {
		t.Errorf("while it is down: %v", err)
	}
	ip(t, node, "link", "set", "eth0", "up")
	must(t, node.Plug("adm")) // it waits until both ends of the cable work: one may have its carrier before
	must(t, theirs.Announce(a))
	if c := claim(t, ours); c.Addr != a {
		t.Errorf("%v", c)
	}
}

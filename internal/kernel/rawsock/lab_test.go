package rawsock

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"holdfast/lab"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

// wire is two hosts on a wire; the second is the peer.
func wire(t testing.TB) (node, peer *lab.Host) {
	t.Helper()
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	node, err := l.AddHost("node", lab.On("adm", "10.1.0.1/24", "fd00::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	peer, err = l.AddHost("peer", lab.On("adm", "10.1.0.2/24", "fd00::2/64"))
	if err != nil {
		t.Fatal(err)
	}
	return node, peer
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// cable is the host's interface on the wire.
func cable(t testing.TB, h *lab.Host) Interface {
	t.Helper()
	var i Interface
	must(t, h.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			i = Interface{Index: link.Index, Name: link.Name, MAC: link.HardwareAddr}
		}
		return err
	}))
	return i
}

func socket(t testing.TB, h *lab.Host, ipv6 bool) *Socket {
	t.Helper()
	var s *Socket
	i := cable(t, h)
	must(t, h.Do(func() (err error) { s, err = Open(i, ipv6); return err }))
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func neighbors(t testing.TB, h *lab.Host) *Neighbors {
	t.Helper()
	var n *Neighbors
	i := cable(t, h)
	must(t, h.Do(func() (err error) { n, err = OpenNeighbors(i); return err }))
	t.Cleanup(func() { _ = n.Close() })
	return n
}

// poller waits for some sockets.
func poller(t testing.TB, sockets ...Pollable) *Poller {
	t.Helper()
	p, err := NewPoller()
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	for _, s := range sockets {
		must(t, p.Add(s))
	}
	return p
}

// receive waits for one packet.
func receive(t *testing.T, s *Socket) Packet {
	t.Helper()
	p := poller(t, s)
	deadline := time.Now().Add(time.Minute)
	for {
		packet, err := s.Receive(make([]byte, 1500))
		if err == nil {
			return packet
		}
		if !errors.Is(err, ErrEmpty) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		_, err = p.Wait(deadline)
		must(t, err)
	}
}

func claim(t *testing.T, n *Neighbors) Claim {
	t.Helper()
	p := poller(t, n)
	deadline := time.Now().Add(time.Minute)
	for {
		c, err := n.Receive()
		if err == nil {
			return c
		}
		if !errors.Is(err, ErrEmpty) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		_, err = p.Wait(deadline)
		must(t, err)
	}
}

func TestAdvertsArriveWithTheirHopsAndAddresses(t *testing.T) {
	node, peer := wire(t)
	for name, c := range map[string]struct{ src, dst string }{
		"IPv4 multicast":                         {"10.1.0.1", "224.0.0.18"},
		"IPv4 unicast":                           {"10.1.0.1", "10.1.0.2"},
		"IPv4 from an address that is not here":  {"10.1.0.77", "224.0.0.18"},
		"IPv4 unicast from one that is not here": {"10.1.0.77", "10.1.0.2"},
		"IPv4 from a net that is not here":       {"192.0.2.1", "224.0.0.18"},
		"IPv6 multicast":                         {"fe80::68:66ff:fe00:100", "ff02::12"},
		"IPv6 unicast":                           {"fd00::1", "fd00::2"},
		"IPv6 from an address that is not here":  {"fe80::77", "ff02::12"},
		"IPv6 unicast from one that is not here": {"fd00::77", "fd00::2"},
		"IPv6 from a net that is not here":       {"2001:db8::1", "ff02::12"},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := netip.MustParseAddr(c.src), netip.MustParseAddr(c.dst)
			from, to := socket(t, node, src.Is6()), socket(t, peer, src.Is6())
			if dst.IsMulticast() {
				must(t, from.Join(dst))
				must(t, to.Join(dst))
				must(t, to.Join(dst))
			}
			must(t, from.Send([]byte("an odd sum"), src, dst))
			got := receive(t, to)
			if string(got.Payload) != "an odd sum" || got.Src != src || got.Dst != dst || got.TTL != 255 {
				t.Errorf("%q from %v to %v with TTL %d", got.Payload, got.Src, got.Dst, got.TTL)
			}
			if _, err := from.Receive(make([]byte, 1500)); err != ErrEmpty {
				t.Errorf("the sender heard itself, or: %v", err)
			}
		})
	}
}

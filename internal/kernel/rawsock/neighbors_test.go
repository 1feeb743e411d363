package rawsock

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
)

func ip(t *testing.T, h *lab.Host, args ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), append([]string{"ip"}, args...)...)
	must(t, err)
	return string(out)
}

// until polls until the text of `ip ARGS` contains want.
func until(t *testing.T, h *lab.Host, want string, args ...string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(time.Minute)
	for {
		out := ip(t, h, args...)
		if strings.Contains(out, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("ip %s on the peer: %q; want %q in it", strings.Join(args, " "), out, want)
		}
		<-tick.C
	}
}

func TestAnnouncementCorrectsTheNeighboursCaches(t *testing.T) {
	for _, address := range []string{"10.1.0.101", "fd00::101"} {
		t.Run(address, func(t *testing.T) {
			node, peer := wire(t)
			n := neighbors(t, node)
			ip(t, peer, "neigh", "replace", address, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "reachable")
			must(t, n.Announce(netip.MustParseAddr(address)))
			until(t, peer, n.iface.MAC.String(), "neigh", "show", address)
		})
	}
}

func TestAnnouncementOfAnotherIsAClaim(t *testing.T) {
	node, peer := wire(t)
	ours, theirs := neighbors(t, node), neighbors(t, peer)
	for _, address := range []string{"10.1.0.101", "fd00::101", "fe80::101"} {
		a := netip.MustParseAddr(address)
		must(t, ours.Watch([]netip.Addr{netip.MustParseAddr("10.1.0.102"), a}))
		must(t, ours.Announce(a)) // is not heard by ourselves
		must(t, theirs.Announce(netip.MustParseAddr("10.1.0.201")))
		must(t, theirs.Announce(netip.MustParseAddr("fd00::201")))
		must(t, theirs.Announce(a))
		if c := claim(t, ours); c.Addr != a || c.MAC.String() != theirs.iface.MAC.String() {
			t.Errorf("got %v, want %v at %v", c, a, theirs.iface.MAC)
		}
		if a.Is4() {
			claim(t, ours) // the reply beside the request
		}
		if c, err := ours.Receive(); err != ErrEmpty {
			t.Errorf("something more: %v, %v", c, err)
		}
	}
}

func TestAskedOwnerAnswers(t *testing.T) {
	node, peer := wire(t)
	ip(t, peer, "address", "add", "10.1.0.101/32", "dev", "eth0")
	ip(t, peer, "address", "add", "fd00::101/128", "dev", "eth0", "nodad")
	// The kernel joins the group that questions go to some time after the
	// address is there, when its worker runs.
	until(t, peer, "ff02::1:ff00:101", "maddress", "show", "dev", "eth0")
	ours := neighbors(t, node)
	for _, c := range []struct{ addr, src string }{
		{"10.1.0.101", "10.1.0.1"},
		{"10.1.0.101", ""},
		{"fd00::101", "fd00::1"},
		{"fd00::101", ""},
		{"10.1.0.101", "fd00::1"}, // of the other family
		{"fd00::101", "10.1.0.1"},
	} {
		a := netip.MustParseAddr(c.addr)
		var src netip.Addr
		if c.src != "" {
			src = netip.MustParseAddr(c.src)
		}
		must(t, ours.Watch([]netip.Addr{a}))
		must(t, ours.Ask(a, src))
		if got := claim(t, ours); got.Addr != a || got.MAC.String() != cable(t, peer).MAC.String() {
			t.Errorf("asked from %q who has %v: got %v", c.src, a, got)
		}
	}
}

// On InfiniBand hardware addresses have 20 bytes: what one side sends, the
// filter and the parser of the other understand. The wire here is Ethernet,
// which carries such packets to everybody, as the broadcast address says.
func TestInfiniBandsClaimsAreSentAndUnderstood(t *testing.T) {
	node, peer := wire(t)
	open := func(h *lab.Host, last byte) *Neighbors {
		i := cable(t, h)
		i.MAC, i.Broadcast = infiniband(), bytes.Repeat([]byte{0xff}, infinibandSize)
		i.MAC[infinibandSize-1] = last
		var n *Neighbors
		must(t, h.Do(func() (err error) { n, err = OpenNeighbors(i); return err }))
		t.Cleanup(func() { _ = n.Close() })
		return n
	}
	ours, theirs := open(node, 1), open(peer, 2)
	for _, address := range []string{"10.1.0.101", "fd00::101"} {
		a := netip.MustParseAddr(address)
		must(t, ours.Watch([]netip.Addr{a}))
		must(t, ours.Announce(a)) // is not heard by ourselves
		must(t, theirs.Announce(a))
		if c := claim(t, ours); c.Addr != a || !bytes.Equal(c.MAC, theirs.iface.MAC) {
			t.Errorf("got %v, want %v at %v", c, a, theirs.iface.MAC)
		}
	}
}

// The first announcement after an interface was down and is up again goes out:
// it is the one that matters.
func TestAnnouncementAfterTheInterfaceWasDownIsNotLost(t *testing.T) {
	node, peer := wire(t)
	ours, theirs := neighbors(t, node), neighbors(t, peer)
	a := netip.MustParseAddr("10.1.0.101")
	must(t, theirs.Watch([]netip.Addr{a}))
	ip(t, node, "link", "set", "eth0", "down")
	ip(t, node, "link", "set", "eth0", "up")
	must(t, node.Plug("adm")) // it waits until both ends of the cable work
	must(t, ours.Announce(a))
	claim(t, theirs) // the request
	claim(t, theirs) // the reply
}

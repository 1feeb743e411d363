package vrrp

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/rawsock"
	"holdfast/lab"
)

// onHost runs f with a loop that has no router yet, in the network namespace of
// a host, and that host's interface.
func onHost(t *testing.T, f func(l *loop, eth0 link.Link) error) {
	t.Helper()
	host, err := lab.NewTest(t, lab.Options{Networks: []string{"lan"}}).AddHost("n1", lab.On("lan", "10.9.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	err = host.Do(func() error {
		found, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		poller, err := rawsock.NewPoller()
		if err != nil {
			return err
		}
		defer poller.Close()
		log := slog.New(slog.DiscardHandler)
		l := &loop{log: log, poller: poller, ports: map[int]*port{}, table: newLinkTable(),
			appliers: &appliers{log: log, byIndex: map[int]*applier{}}}
		defer l.appliers.close()
		eth0 := link.Link{Index: found.Index, Name: found.Name, Kind: link.Ethernet, MAC: found.HardwareAddr, Up: true, Running: true}
		return f(l, eth0)
	})
	if err != nil {
		t.Error(err)
	}
}

func instanceOf(core Router) *instance {
	return &instance{log: slog.New(slog.DiscardHandler), core: core, settings: RouterSettings{Router: core}, applied: newApplied()}
}

// The applier of an interface that went away may take its time. What it says
// then about an address is not taken for the one that the router has on
// another interface by now: that would neither be shown nor be put back.
func TestLateWordFromAnInterfaceThatIsGoneIsNotBelieved(t *testing.T) {
	onHost(t, func(l *loop, eth0 link.Link) error {
		in, address := instanceOf(loopRouter()), netip.MustParsePrefix("10.9.0.100/32")
		if err := l.attach(in, eth0); err != nil {
			return err
		}
		before := in.applied
		before.add(address)
		before.announce(3, epoch)
		l.detach(in)
		if err := l.attach(in, eth0); err != nil { // as if it were another
			return err
		}
		in.applied.add(address)
		before.gone(address)
		if !in.applied.isThere(address) {
			t.Error("the address counts as gone")
		}
		if in.applied.announcements != 3 {
			t.Errorf("%d announcements are counted, want those of before", in.applied.announcements)
		}
		l.detach(in)
		return nil
	})
}

package vrrp

import (
	"log/slog"
	"net"
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

package vrrp

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/rawsock"
	"holdfast/lab"
)

// A router on InfiniBand gets its sockets: neighbours there are told by way of
// the link's own broadcast address, 20 bytes that differ with the partition.
// The kernels of tests have no InfiniBand; the sockets don't mind.
func TestRouterOnInfiniBandGetsItsSockets(t *testing.T) {
	host, err := lab.NewTest(t, lab.Options{Networks: []string{"ib"}}).AddHost("n1", lab.On("ib", "10.9.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	err = host.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		ib := link.Link{Index: eth0.Index, Name: "ib0", Kind: link.InfiniBand, Up: true, Running: true,
			MAC: bytes.Repeat([]byte{2}, 20), Broadcast: bytes.Repeat([]byte{0xff}, 20)}
		poller, err := rawsock.NewPoller()
		if err != nil {
			return err
		}
		defer poller.Close()
		log, core := slog.New(slog.DiscardHandler), loopRouter()
		in := &instance{log: log, core: core, settings: RouterSettings{Router: core}}
		l := &loop{log: log, poller: poller, ports: map[int]*port{}, appliers: &appliers{log: log, byIndex: map[int]*applier{}}}
		defer l.appliers.close()
		defer l.detach(in)
		if err := l.attach(in, ib); err != nil {
			return err
		}
		in.applier.announce(in)
		return in.port.neighbors.Ask(netip.MustParseAddr("10.9.0.100"), core.Source)
	})
	if err != nil {
		t.Error(err)
	}
}

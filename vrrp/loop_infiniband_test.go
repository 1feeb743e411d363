package vrrp

import (
	"bytes"
	"net/netip"
	"testing"

	"holdfast/internal/kernel/link"
)

// A router on InfiniBand gets its sockets: neighbours there are told by way of
// the link's own broadcast address, 20 bytes that differ with the partition.
// The kernels of tests have no InfiniBand; the sockets don't mind.
func TestRouterOnInfiniBandGetsItsSockets(t *testing.T) {
	onHost(t, func(l *loop, ib link.Link) error {
		ib.Kind, ib.MAC, ib.Broadcast = link.InfiniBand, bytes.Repeat([]byte{2}, 20), bytes.Repeat([]byte{0xff}, 20)
		in := instanceOf(loopRouter())
		if err := l.attach(in, ib); err != nil {
			return err
		}
		defer l.detach(in)
		in.applier.announce(in)
		return in.port.neighbors.Ask(netip.MustParseAddr("10.9.0.100"), in.core.Source)
	})
}

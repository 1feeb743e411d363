package vrrp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/rawsock"
)

// instance is one virtual router as the loop has it. Only the loop touches
// it, but for what its applier counts.
type instance struct {
	index    int // the machine's
	log      *slog.Logger
	metrics  *routerMetrics
	settings RouterSettings
	core     Router // what the machine has: with the interface and source that were found

	spot    spot
	settle  settle
	port    *port    // its sockets; nil: it has no interface
	applier *applier // of the port's interface

	state       State
	history     []Transition
	groupState  State // of its sync group, as hooks were told
	sent        uint64
	sendErrors  uint64
	dropped     [drops]uint64
	lastSent    time.Time
	lastSeen    time.Time
	contested   time.Time // the last claim that the applier was told of
	refused     bool      // the last advert could not be sent
	lingers     bool      // withdrawn, but another was not heard to have the addresses yet
	leasedUntil time.Time // of a fenced one, by bootNow: its addresses may be here; zero: they may not
	told        State     // of a fenced one: what hooks were told last
	packets     packets
	applied     *applied // what the applier tells
}

// The groups that adverts go to (RFC 9568 §5.1.1.2, §5.1.2.2).
var (
	groupIPv4 = netip.AddrFrom4([4]byte{224, 0, 0, 18})
	groupIPv6 = netip.MustParseAddr("ff02::12")
)

// port is the sockets of one interface.
type port struct {
	link      link.Link
	socket4   *rawsock.Socket // nil: no router of the family
	socket6   *rawsock.Socket
	neighbors *rawsock.Neighbors
	routers4  [256]*instance // by VRID
	routers6  [256]*instance
	users     []*instance
	holders   map[netip.Addr]*instance
}

// socket is the one of a router's family.
func (p *port) socket(in *instance) *rawsock.Socket {
	if in.core.is6() {
		return p.socket6
	}
	return p.socket4
}

// holder finds the router that has an address.
func (p *port) holder(addr netip.Addr) *instance { return p.holders[addr] }

// receive empties the port's queues, up to a bound.
func (p *port) receive(l *loop) {
	p.receivePackets(l, p.socket4, &p.routers4)
	p.receivePackets(l, p.socket6, &p.routers6)
	p.receiveClaims(l)
}

// receiveFrom empties the queue of one socket; false: it is not the port's.
func (p *port) receiveFrom(l *loop, ready rawsock.Pollable) bool {
	switch {
	case p.socket4 != nil && ready == rawsock.Pollable(p.socket4):
		p.receivePackets(l, p.socket4, &p.routers4)
	case p.socket6 != nil && ready == rawsock.Pollable(p.socket6):
		p.receivePackets(l, p.socket6, &p.routers6)
	case ready == rawsock.Pollable(p.neighbors):
		p.receiveClaims(l)
	default:
		return false
	}
	return true
}

func (p *port) receiveClaims(l *loop) {
	for range maxBatch {
		claim, err := p.neighbors.Receive()
		if err != nil {
			l.receiveError(p, err)
			return
		}
		l.claim(p, claim)
	}
}

func (p *port) receivePackets(l *loop, socket *rawsock.Socket, byVRID *[256]*instance) {
	if socket == nil {
		return
	}
	for range maxBatch {
		packet, err := socket.Next()
		if err != nil {
			l.receiveError(p, err)
			return
		}
		l.packet(p, packet, byVRID)
	}
}

// receiveError takes an error of a socket. That its interface is gone or down
// is told by the kernel's notices, too, which are acted on.
func (l *loop) receiveError(p *port, err error) {
	if errors.Is(err, rawsock.ErrEmpty) {
		return
	}
	l.drop(p, dropReceive, netip.Addr{}, 0)
	l.log.Debug("receive", "interface", p.link.Name, "error", err)
}

// interfaceOf is what sockets are opened on. InfiniBand can't be announced to
// without its broadcast address.
func interfaceOf(l *link.Link) rawsock.Interface {
	return rawsock.Interface{Index: l.Index, Name: l.Name, MAC: l.MAC, Broadcast: l.Broadcast}
}

// attach gives a router the sockets and the applier of an interface.
func (l *loop) attach(in *instance, to link.Link) error {
	p := l.ports[to.Index]
	if p == nil {
		neighbors, err := rawsock.OpenNeighbors(interfaceOf(&to))
		if err != nil {
			return fmt.Errorf("open a socket for neighbours: %w", err)
		}
		p = &port{link: to, neighbors: neighbors, holders: map[netip.Addr]*instance{}}
		if err := l.poller.Add(neighbors); err != nil {
			neighbors.Close()
			return err
		}
		l.ports[to.Index] = p
		l.listening = append(l.listening, p)
	}
	applier, err := l.appliers.get(to)
	if err == nil {
		err = l.openSocket(p, in)
	}
	if err != nil {
		l.dropUnused(p)
		return err
	}
	in.port, in.applier = p, applier
	p.users = append(p.users, in)
	p.index(l)
	return nil
}

// openSocket opens the socket of a router's family where the port has none.
func (l *loop) openSocket(p *port, in *instance) error {
	at, group := &p.socket4, groupIPv4
	if in.core.is6() {
		at, group = &p.socket6, groupIPv6
	}
	if *at == nil {
		opened, err := rawsock.Open(interfaceOf(&p.link), in.core.is6())
		if err != nil {
			return fmt.Errorf("open a socket for protocol 112: %w", err)
		}
		if err := l.poller.Add(opened); err != nil {
			opened.Close()
			return err
		}
		*at = opened
	}
	if len(in.core.Peers) > 0 {
		return nil
	}
	if err := (*at).Join(group); err != nil {
		return fmt.Errorf("join %s: %w", group, err)
	}
	return nil
}

// index makes the port's tables of its routers, and says whose addresses are
// watched for other owners.
func (p *port) index(l *loop) {
	clear(p.routers4[:])
	clear(p.routers6[:])
	clear(p.holders)
	var watched []netip.Addr
	for _, in := range p.users {
		routers := &p.routers4
		if in.core.is6() {
			routers = &p.routers6
		}
		if other := routers[in.core.VRID]; other == nil || in.index < other.index { // see rival
			routers[in.core.VRID] = in
		}
		for _, prefix := range in.core.Held {
			p.holders[prefix.Addr()] = in
			watched = append(watched, prefix.Addr())
		}
	}
	if err := p.neighbors.Watch(watched); err != nil {
		l.log.Warn("other owners of the addresses will not be noticed", "interface", p.link.Name, "error", err)
	}
}

// detach takes a router off its interface.
func (l *loop) detach(in *instance) {
	p := in.port
	if p == nil {
		return
	}
	in.port, in.applier = nil, nil
	p.users = slices.DeleteFunc(p.users, func(other *instance) bool { return other == in })
	if len(p.users) > 0 {
		p.index(l)
	}
	l.dropUnused(p)
}

// dropUnused closes a port that no router uses. Its applier ends when it has
// nothing to hold any more.
func (l *loop) dropUnused(p *port) {
	if len(p.users) > 0 {
		return
	}
	delete(l.ports, p.link.Index)
	l.listening = slices.DeleteFunc(l.listening, func(other *port) bool { return other == p })
	l.closePort(p)
	l.appliers.release(p.link.Index)
}

// closePort closes the sockets. What they say about it is of no use.
func (l *loop) closePort(p *port) {
	for _, s := range []*rawsock.Socket{p.socket4, p.socket6} {
		if s != nil {
			_ = l.poller.Remove(s)
			_ = s.Close()
		}
	}
	_ = l.poller.Remove(p.neighbors)
	_ = p.neighbors.Close()
}

// Package routers puts virtual routers on hosts of the lab out of one
// description: each member runs keepalived or Holdfast, with the same timers
// and priorities. Who is Active is asked of the wire, never of a daemon.
package routers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"holdfast/lab"
	"holdfast/lab/wire"
)

// Network is the lab's one network, Device every host's interface on it.
const (
	Network = "adm"
	Device  = "eth0"
)

// Kind is a program that runs virtual routers.
type Kind string

// The kinds.
const (
	Keepalived Kind = "keepalived"
	Holdfast   Kind = "holdfast"
)

// Options are the virtual routers and their members.
type Options struct {
	Members    []Kind // the first has the address 10.1.0.1, and fd00::1
	Priorities []int  // one a member, of every router; 1–254
	Routers    int    // how many; 0: one. VRIDs from FirstVRID up
	IPv6       bool
	Version    int // 2 or 3; 0: 3
	Interval   time.Duration
	Password   string // version 2
	Unicast    bool
	NoPreempt  bool
	More       int // further addresses of each router, advertised: from 10.1.2.1 and fd00::2:1 up

	Binary string // the holdfast program; for members that run it
	// Ping is how often the client pings the first address; 0: no pings.
	Ping time.Duration
	// Ask is how often the client asks who has it; 0: never.
	Ask time.Duration
	// Lab makes the lab; lab.New unless said. A test passes lab.NewTest.
	Lab func(lab.Options) (*lab.Lab, error)
}

// FirstVRID is the VRID of the first router; the others follow, and wrap.
const FirstVRID = 51

// VRID is the VRID of a router, counted from 0.
func VRID(router int) int { return (FirstVRID-1+router)%255 + 1 }

// VIP is the address of a router, counted from 0.
func (o Options) VIP(router int) netip.Addr {
	if o.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00::1:%x", VRID(router)))
	}
	return netip.AddrFrom4([4]byte{10, 1, 1, byte(VRID(router))})
}

// Addr is a member's own address in the routers' family; the client is behind
// the last one.
func (o Options) Addr(member int) netip.Addr {
	if o.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00::%x", member+1))
	}
	return netip.AddrFrom4([4]byte{10, 1, 0, byte(member + 1)})
}

// Site is the hosts, their client, and a watch on the wire between them.
type Site struct {
	Options Options
	Lab     *lab.Lab
	Members []*Member
	Client  *lab.Host
	Watch   *wire.Watch
	Ping    *wire.Pinger // nil unless asked for
	Asker   *wire.Sender // of the client

	stop context.CancelFunc
	wait sync.WaitGroup
	mu   sync.Mutex
	err  error
}

// New makes the hosts and starts to watch, ping and ask. No member runs
// anything yet. Close it.
func New(ctx context.Context, o Options) (*Site, error) {
	if len(o.Members) != len(o.Priorities) {
		return nil, fmt.Errorf("routers: %d members and %d priorities", len(o.Members), len(o.Priorities))
	}
	o.Routers = max(o.Routers, 1)
	if o.Version == 0 {
		o.Version = 3
	}
	if o.Lab == nil {
		o.Lab = lab.New
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	expose := []string{self}
	if o.Binary != "" {
		expose = append(expose, o.Binary)
	}
	l, err := o.Lab(lab.Options{Networks: []string{Network}, Expose: expose})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	s := &Site{Options: o, Lab: l, Members: make([]*Member, len(o.Members)), stop: stop}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Site) build(ctx context.Context) error {
	o := s.Options
	failed := make([]error, len(o.Members)+1)
	var wg sync.WaitGroup
	add := func(i int, name string, h **lab.Host) {
		wg.Go(func() {
			*h, failed[i] = s.Lab.AddHost(name, lab.On(Network, fmt.Sprintf("10.1.0.%d/16", i+1), fmt.Sprintf("fd00::%x/64", i+1)))
		})
	}
	for i, kind := range o.Members {
		s.Members[i] = &Member{site: s, index: i, Kind: kind, Options: o}
		add(i, fmt.Sprintf("router%d", i+1), &s.Members[i].Host)
	}
	add(len(o.Members), "client", &s.Client)
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	for _, m := range s.Members {
		mac, err := m.Host.MAC(Network)
		if err != nil {
			return err
		}
		m.MAC = wire.MAC(mac)
	}
	return s.watch(ctx)
}

func (s *Site) watch(ctx context.Context) (err error) {
	o := s.Options
	if s.Watch, err = wire.Listen(s.Lab, Network); err != nil {
		return err
	}
	if s.Asker, err = wire.OpenSender(s.Client, Device); err != nil {
		return err
	}
	if o.Ask > 0 {
		s.wait.Go(func() {
			if err := s.Asker.Ask(ctx, o.Addr(len(o.Members)), o.Ask, o.VIP(0)); err != nil {
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
			}
		})
	}
	if o.Ping > 0 {
		s.Ping, err = wire.StartPing(s.Client, Device, o.VIP(0), o.Ping)
	}
	return err
}

// Close ends the hosts. It returns what broke the watching before.
func (s *Site) Close() error {
	s.stop()
	s.wait.Wait()
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	if s.Ping != nil {
		err = errors.Join(err, s.Ping.Close())
	}
	if s.Asker != nil {
		err = errors.Join(err, s.Asker.Close())
	}
	if s.Watch != nil {
		err = errors.Join(err, s.Watch.Close())
	}
	return errors.Join(err, s.Lab.Close())
}

// Router is a virtual router, as the wire's rules know it.
func (s *Site) Router(i int) wire.Router {
	return wire.Router{VRID: uint8(VRID(i)), IPv6: s.Options.IPv6, Interval: s.Options.Interval}
}

// AwaitActive waits until a member advertises a router with a priority other
// than 0, at that time or later.
func (s *Site) AwaitActive(ctx context.Context, m *Member, router int, since time.Time) (wire.Event, error) {
	r := s.Router(router)
	return s.Watch.Await(ctx, since, fmt.Sprintf("%s to be Active for VRID %d", m, r.VRID), func(e wire.Event) bool {
		return r.Is(e) && e.From == m.MAC && e.Priority > 0
	})
}

// AwaitReply waits until a ping that was sent at that time or later is
// answered by the member.
func (s *Site) AwaitReply(ctx context.Context, m *Member, since time.Time) (wire.Ping, error) {
	p, err := s.Ping.Await(ctx, since, func(p wire.Ping) bool { return p.By == m.MAC })
	if err != nil {
		return p, fmt.Errorf("routers: wait for a ping reply of %s: %w", m, err)
	}
	return p, nil
}

// AwaitSole waits until a member's adverts come twice with nobody else's for
// the router in between, all at that time or later. It returns the second.
func (s *Site) AwaitSole(ctx context.Context, m *Member, router int, since time.Time) (wire.Event, error) {
	r := s.Router(router)
	seen := 0
	return s.Watch.Await(ctx, since, fmt.Sprintf("%s alone to be Active for VRID %d", m, r.VRID), func(e wire.Event) bool {
		switch {
		case !r.Is(e):
		case e.From == m.MAC && e.Priority > 0:
			seen++
		default:
			seen = 0
		}
		return seen == 2
	})
}

// Forget makes the client forget whose the addresses are.
func (s *Site) Forget() error {
	return s.Client.Do(func() error {
		link, err := netlink.LinkByName(Device)
		if err != nil {
			return err
		}
		var errs []error
		for i := range s.Options.Routers {
			ip := s.Options.VIP(i).AsSlice()
			err := netlink.NeighDel(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip})
			if err != nil && !errors.Is(err, syscall.ENOENT) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

package vrrp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// chaos is a machine that is given anything, and what its actions add up to.
type chaos struct {
	t       *testing.T
	rand    *rand.Rand
	m       *Machine
	now     time.Time
	names   []string // by index
	held    map[string]bool
	stopped bool // Stop was last, no Start since
}

// TestNothingThatComesConfusesTheMachine gives it adverts of random content,
// clocks that stand still or leap, orders, tracks and reloads in any order. It
// must not panic, answer one event with a storm, spin at a deadline, hold or
// withdraw twice, split a sync group, or hold anything after Stop.
func TestNothingThatComesConfusesTheMachine(t *testing.T) {
	seeds := 200
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		c := &chaos{t: t, rand: rand.New(rand.NewPCG(uint64(seed), 3)), now: epoch, held: map[string]bool{}}
		routers := c.routers()
		c.m = NewMachine(routers)
		c.name(routers)
		for step := range 500 {
			c.step()
			c.check()
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
		c.give(Event{Kind: Stop})
		c.stopped = true
		c.check()
	}
}

func (c *chaos) name(routers []Router) {
	c.names = nil
	for _, r := range routers {
		c.names = append(c.names, r.Name)
	}
}

// routers are a random configuration of up to six of eight names.
func (c *chaos) routers() []Router {
	var list []Router
	for _, i := range c.rand.Perm(8)[:1+c.rand.IntN(6)] {
		r := Router{
			Name: fmt.Sprintf("vip%d", i), Interface: "eth0", Version: 3, VRID: uint8(i + 1), Priority: uint8(1 + c.rand.IntN(255)),
			Interval: time.Duration(1+c.rand.IntN(200)) * centisecond, Source: node1, Preempt: c.rand.IntN(2) == 0,
			Advertised: virtual4[:1+c.rand.IntN(2)], StartupDelay: time.Duration(c.rand.IntN(2)) * time.Second,
			PreemptDelay: time.Duration(c.rand.IntN(3)) * time.Second,
			Group:        []string{"", "", "g", "h"}[c.rand.IntN(4)],
		}
		switch c.rand.IntN(4) {
		case 0:
			r.Version, r.Interval, r.Password = 2, time.Second, [8]byte{1}
		case 1:
			r.Source, r.Advertised = link1, virtual6
		case 2:
			r.Peers = []netip.Addr{node2}
		}
		for _, t := range []Track{{Name: "a"}, {Name: "b", Weight: 30}, {Name: "c", Weight: -300}, {Name: "d", Weight: 2, Number: true}} {
			if c.rand.IntN(3) == 0 {
				t.Reverse = c.rand.IntN(4) == 0
				r.Tracks = append(r.Tracks, t)
			}
		}
		list = append(list, r)
	}
	return list
}

func (c *chaos) step() {
	router := c.rand.IntN(len(c.names))
	switch c.rand.IntN(16) {
	case 0:
		c.start()
	case 1:
		if c.rand.IntN(8) == 0 {
			c.give(Event{Kind: Stop})
			c.stopped = true
		}
	case 2:
		c.give(Event{Kind: []EventKind{Yield, Pull, Release}[c.rand.IntN(3)], Router: router})
	case 3:
		c.give(Event{Kind: Tracked, Name: []string{"a", "b", "c", "d", "nobody's"}[c.rand.IntN(5)], Up: c.rand.IntN(4) > 0, Value: c.rand.IntN(400) - 200})
	case 4:
		c.now = c.now.Add(time.Duration(c.rand.Int64N(int64(20 * time.Second))))
		c.give(Event{Kind: Stalled, Stall: time.Duration(c.rand.Int64N(int64(30 * time.Second)))})
	case 5:
		if c.rand.IntN(8) == 0 {
			c.restart()
			return
		}
		c.give(Event{Kind: Owner, Router: router})
	case 6:
		if c.rand.IntN(4) == 0 {
			c.reload()
		}
	case 7, 8, 9, 10:
		c.deadline()
	default:
		c.give(Event{Kind: Received, Router: router, From: c.stranger(router), Advert: c.garbage(router)})
	}
}

// start starts it, if it does not run, with what a predecessor left of some
// routers.
func (c *chaos) start() {
	var adopted []int
	if !c.m.running {
		adopted = c.rand.Perm(len(c.names))[:c.rand.IntN(len(c.names)+1)]
		for _, i := range adopted {
			c.held[c.names[i]] = true
		}
	}
	c.stopped = false
	c.give(Event{Kind: Start, Adopted: adopted})
}

// restart ends the machine without withdrawing, and begins another one, maybe
// of other routers, that adopts what is held and still wanted.
func (c *chaos) restart() {
	if !c.m.running {
		return
	}
	c.give(Event{Kind: Suspend, Grace: time.Duration(c.rand.Int64N(int64(5 * time.Minute)))})
	if at, ok := c.m.Next(); ok {
		c.t.Errorf("suspended, and a Tick is due at %v", at.Sub(epoch))
	}
	routers := c.m.Routers()
	if c.rand.IntN(2) == 0 {
		routers = c.routers()
	}
	c.m = NewMachine(routers)
	c.name(routers)
	var adopted []int
	for i, name := range c.names {
		if c.held[name] {
			adopted = append(adopted, i)
		}
	}
	for name := range c.held {
		if !slices.Contains(c.names, name) {
			delete(c.held, name) // the service's: the journal has it, the configuration has not
		}
	}
	c.give(Event{Kind: Start, Adopted: adopted})
}

// deadline meets the next one, and it must be over then.
func (c *chaos) deadline() {
	at, ok := c.m.Next()
	if !ok {
		return
	}
	if at.After(c.now) {
		c.now = at
	}
	c.give(Event{Kind: Tick})
	if next, ok := c.m.Next(); ok && !next.After(c.now) {
		c.t.Errorf("at %v a Tick left a deadline of %v", c.now.Sub(epoch), next.Sub(epoch))
	}
}

func (c *chaos) stranger(router int) netip.Addr {
	r := c.m.Routers()[router]
	switch c.rand.IntN(4) {
	case 0:
		return r.Source
	case 1:
		return node2
	case 2:
		return link1.WithZone("eth0")
	}
	return netip.AddrFrom4([4]byte{10, 1, byte(c.rand.IntN(3)), byte(c.rand.IntN(256))})
}

// garbage is sometimes nearly what a peer would say, and sometimes nothing
// that Parse would let through.
func (c *chaos) garbage(router int) *Advert {
	r := c.m.Routers()[router]
	a := &Advert{Version: r.Version, VRID: r.VRID, Priority: uint8(c.rand.IntN(256)), Interval: r.Interval, Password: r.Password, Addresses: r.Advertised}
	if r.Version == 2 {
		a.AuthType = AuthPass
	}
	switch c.rand.IntN(8) {
	case 0:
		a.Version = uint8(c.rand.IntN(16))
	case 1:
		a.VRID = uint8(c.rand.IntN(256))
	case 2:
		a.Interval = time.Duration(c.rand.Int64N(int64(maxIntervalV3))) - time.Second
	case 3:
		a.AuthType, a.Password = uint8(c.rand.IntN(256)), [8]byte{byte(c.rand.IntN(3))}
	case 4:
		a.Addresses = nil
	case 5:
		a.Addresses = []netip.Addr{{}, link1}
	case 6:
		a.Checksum = Plain
	}
	return a
}

func (c *chaos) reload() {
	routers := c.routers()
	before := c.names
	actions, gone := c.m.Reconfigure(routers, c.now)
	c.name(routers)
	for _, r := range gone {
		if !slices.Contains(before, r.Name) {
			c.t.Errorf("%s is gone and never was", r.Name)
		}
	}
	c.add(actions, gone)
}

func (c *chaos) give(e Event) {
	e.At = c.now
	c.add(c.m.Step(e), nil)
}

// add carries actions out.
func (c *chaos) add(actions []Action, gone []Router) {
	// A node's worst moment: everything is taken and lost at once, each router
	// with its advert, its addresses, its announcement and its state, and a peer.
	if most := 12 * (len(c.names) + len(gone)); len(actions) > most {
		c.t.Errorf("%d actions at once for %d routers", len(actions), len(c.names))
	}
	for _, a := range actions {
		name := ""
		if a.Router < 0 {
			name = gone[-1-a.Router].Name
		} else {
			name = c.names[a.Router]
		}
		switch a.Kind {
		case Hold:
			c.held[name] = true
		case Withdraw:
			if !c.held[name] {
				c.t.Errorf("%s is withdrawn and was not held", name)
			}
			delete(c.held, name)
		case Send, Announce, Ask, Became, Disagree:
		}
	}
}

func (c *chaos) check() {
	if c.stopped && len(c.held) > 0 {
		c.t.Errorf("stopped, and %v is held", c.held)
	}
	if !c.m.running {
		return
	}
	state := map[string]State{}
	for i, r := range c.m.Routers() {
		s := c.m.Status(i)
		if (s.State == Active) != c.held[r.Name] {
			c.t.Errorf("%s is %v, held: %v", r.Name, s.State, c.held[r.Name])
		}
		if other, ok := state[r.Group]; ok && r.Group != "" && other != s.State {
			c.t.Errorf("sync group %s is %v and %v", r.Group, other, s.State)
		}
		state[r.Group] = s.State
		if s.Priority == 0 || (s.Priority == owner && r.Priority != owner) {
			c.t.Errorf("%s has priority %d", r.Name, s.Priority)
		}
		if s.Interval <= 0 {
			c.t.Errorf("%s has an interval of %v", r.Name, s.Interval)
		}
		if len(s.Peers) > maxPeers+len(r.Peers) {
			c.t.Errorf("%s keeps %d peers", r.Name, len(s.Peers))
		}
	}
}

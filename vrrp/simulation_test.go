package vrrp

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// simulation is some nodes on one wire per router, in virtual time. Adverts
// take up to maxDelay and keep no order.
type simulation struct {
	rand     *rand.Rand
	now      time.Time
	nodes    []*simNode
	flights  []flight
	cut      map[[2]int]bool // from, to: a partition, may be one-way
	lossy    int             // percent of the adverts that are lost
	wholeAt  time.Time       // since when nothing is cut, lost, stalled or commanded
	settings []Router        // of all nodes, without Priority and Source
	doubled  []time.Time     // by router: since when two hold it; zero: not
	missing  []time.Time     // by router: since when nobody does
	misled   []time.Time     // by router: since when clients believe another than the Active
	told     []int           // by router: whose announcement clients heard last; -1: nobody's, or he is dead, or his last advert may have been lost: then the refresh puts it right
	history  []string
}

const maxDelay = 2 * time.Millisecond

// An announcement is said five times, as the applier does unless configured.
const (
	simBursts     = 5
	simBurstEvery = time.Second
)

// bursts are those of one announcement that are to come.
type bursts struct {
	left int
	next time.Time
}

type simNode struct {
	index   int
	m       *Machine
	up      bool
	stalled time.Time // until when; zero: runs
	slept   time.Time // when the stall began
	held    []bool    // by router
	late    []flight  // what came meanwhile
	bursts  []bursts  // by router
}

type flight struct {
	at         time.Time
	to, router int
	from       netip.Addr
	advert     Advert
}

func newSimulation(seed uint64, nodes int, routers []Router) *simulation {
	s := &simulation{rand: rand.New(rand.NewPCG(seed, 7)), now: epoch, wholeAt: epoch, cut: map[[2]int]bool{}, settings: routers,
		doubled: make([]time.Time, len(routers)), missing: make([]time.Time, len(routers)),
		misled: make([]time.Time, len(routers)), told: slices.Repeat([]int{-1}, len(routers))}
	for i := range nodes {
		s.nodes = append(s.nodes, &simNode{index: i, held: make([]bool, len(routers)), bursts: make([]bursts, len(routers))})
		s.boot(s.nodes[i])
	}
	return s
}

func (s *simulation) source(node, router int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(router), 0, byte(node + 1)})
}

func (s *simulation) boot(n *simNode) {
	routers := slices.Clone(s.settings)
	for i := range routers {
		routers[i].Source = s.source(n.index, i)
		// Every node is first for another router; the members of a group have one order.
		routers[i].Priority = uint8(254 - 20*((n.index+len(routers[i].Group)+i*(1-min(len(routers[i].Group), 1)))%len(s.nodes)))
	}
	n.m, n.up, n.stalled, n.late = NewMachine(routers), true, time.Time{}, nil
	clear(n.bursts)
	s.act(n, n.m.Step(Event{Kind: Start, At: s.now}))
}

func (s *simulation) step(n *simNode, e Event) {
	e.At = s.now
	s.act(n, n.m.Step(e))
}

func (s *simulation) act(n *simNode, actions []Action) {
	for _, a := range actions {
		switch a.Kind {
		case Send:
			s.send(n, a)
		case Hold:
			n.held[a.Router] = true
		case Withdraw:
			n.held[a.Router] = false
			n.bursts[a.Router].left = 0
		case Announce:
			n.bursts[a.Router].left = simBursts
			s.burst(n, a.Router)
		case Became:
			if a.From == Active && (s.lossy > 0 || len(s.cut) > 0) || a.To == Active && !s.heard(n) {
				s.told[a.Router] = -1
			}
			s.history = append(s.history, fmt.Sprintf("%v node %d router %d: %v -> %v: %s", s.now.Sub(epoch), n.index, a.Router, a.From, a.To, a.Reason))
		}
	}
}

// burst tells the clients once. When they could hear none of it, the refresh
// puts it right.
func (s *simulation) burst(n *simNode, router int) {
	b := &n.bursts[router]
	b.left--
	b.next = s.now.Add(simBurstEvery)
	switch {
	case s.heard(n):
		s.told[router] = n.index
	case b.left == 0:
		s.told[router] = -1
	}
}

// heard tells whether the clients hear a node: they are where its peers are.
func (s *simulation) heard(n *simNode) bool {
	for cut := range s.cut {
		if cut[0] == n.index {
			return false
		}
	}
	return true
}

func (s *simulation) send(n *simNode, a Action) {
	r := n.m.routers[a.Router]
	advert := Advert{Version: r.Version, VRID: r.VRID, Priority: a.Priority, Interval: a.Interval, AuthType: r.authType(), Password: r.Password, Checksum: r.Checksum, Addresses: r.Advertised}
	for _, to := range s.nodes {
		if to == n || s.cut[[2]int{n.index, to.index}] || s.rand.IntN(100) < s.lossy {
			continue
		}
		at := s.now.Add(time.Duration(s.rand.Int64N(int64(maxDelay))))
		s.flights = append(s.flights, flight{at: at, to: to.index, router: a.Router, from: r.Source, advert: advert})
	}
}

// run lets time pass, event by event, and calls check after each.
func (s *simulation) run(d time.Duration, check func()) {
	end := s.now.Add(d)
	for {
		next, act := end, func() {}
		for _, n := range s.nodes {
			if !n.up {
				continue
			}
			if !n.stalled.IsZero() {
				if n.stalled.Before(next) {
					next, act = n.stalled, func() { s.wake(n) }
				}
				continue
			}
			if at, ok := n.m.Next(); ok && at.Before(next) {
				next, act = at, func() { s.step(n, Event{Kind: Tick}) }
			}
			for router, b := range n.bursts {
				if b.left > 0 && b.next.Before(next) {
					next, act = b.next, func() { s.burst(n, router) }
				}
			}
		}
		for i := range s.flights {
			if f := s.flights[i]; f.at.Before(next) {
				next, act = f.at, func() { s.land(i) }
			}
		}
		s.now = next
		act()
		check()
		if !next.Before(end) {
			return
		}
	}
}

func (s *simulation) land(i int) {
	f := s.flights[i]
	s.flights = slices.Delete(s.flights, i, i+1)
	n := s.nodes[f.to]
	switch {
	case !n.up:
	case !n.stalled.IsZero():
		n.late = append(n.late, f)
	default:
		s.step(n, Event{Kind: Received, Router: f.router, From: f.from, Advert: &f.advert})
	}
}

// wake is what the service does after it did not run: what came meanwhile
// first, then the stall, then the time.
func (s *simulation) wake(n *simNode) {
	for _, f := range n.late {
		s.step(n, Event{Kind: Received, Router: f.router, From: f.from, Advert: &f.advert})
	}
	n.late, n.stalled = nil, time.Time{}
	s.step(n, Event{Kind: Stalled, Stall: s.now.Sub(n.slept)})
	s.step(n, Event{Kind: Tick})
	s.disturb()
}

// disturb notes that something is not as it should be at this moment.
func (s *simulation) disturb() { s.wholeAt = s.now }

func (s *simulation) whole() bool {
	return s.lossy == 0 && len(s.cut) == 0 && !slices.ContainsFunc(s.nodes, func(n *simNode) bool { return n.up && !n.stalled.IsZero() })
}

// fault breaks, mends or commands something.
func (s *simulation) fault() {
	n := s.nodes[s.rand.IntN(len(s.nodes))]
	router := s.rand.IntN(len(s.settings))
	s.disturb()
	switch s.rand.IntN(9) {
	case 0: // power
		n.up = !n.up
		for i := range s.told {
			if s.told[i] == n.index {
				s.told[i] = -1
			}
		}
		if n.up {
			clear(n.held)
			s.boot(n)
		}
	case 1: // partition, sometimes one-way
		for _, other := range s.nodes {
			if other != n {
				s.cut[[2]int{n.index, other.index}] = true
				if s.rand.IntN(3) > 0 {
					s.cut[[2]int{other.index, n.index}] = true
				}
			}
		}
	case 2:
		s.lossy = 10 + s.rand.IntN(40)
	case 3:
		if n.up && n.stalled.IsZero() {
			n.slept, n.stalled = s.now, s.now.Add(time.Duration(s.rand.Int64N(int64(6*time.Second))))
		}
	case 4:
		s.command(n, Event{Kind: Tracked, Name: "interface eth0", Up: s.rand.IntN(2) == 0})
	case 5:
		s.command(n, Event{Kind: []EventKind{Yield, Pull, Release, Release}[s.rand.IntN(4)], Router: router})
	case 6:
		s.command(n, Event{Kind: Owner, Router: router})
	default: // mend the network
		clear(s.cut)
		s.lossy = 0
	}
}

func (s *simulation) command(n *simNode, e Event) {
	if n.up && n.stalled.IsZero() {
		s.step(n, e)
	}
}

// actives are the nodes that hold a router's addresses.
func (s *simulation) actives(router int) []int {
	var list []int
	for _, n := range s.nodes {
		if n.up && n.held[router] {
			list = append(list, n.index)
		}
	}
	return list
}

// able tells whether a node takes part in a router.
func (n *simNode) able(router int) bool {
	if !n.up {
		return false
	}
	state := n.m.routers[router].group.state
	return state == Backup || state == Active
}

func (s *simulation) story() string {
	return strings.Join(s.history[max(0, len(s.history)-25):], "\n")
}

// simRouters are alone, in a group, of version 2, patient, and slow to preempt.
func simRouters() []Router {
	track := []Track{{Name: "interface eth0"}}
	list := []Router{
		{Name: "fast", Version: 3, Interval: 100 * time.Millisecond, Preempt: true, Tracks: track},
		{Name: "stay", Version: 3, Interval: 200 * time.Millisecond, Tracks: track},
		{Name: "old", Version: 2, Interval: time.Second, Preempt: true, Password: [8]byte{1}},
		{Name: "wait", Version: 3, Interval: 100 * time.Millisecond, Preempt: true, PreemptDelay: 2 * time.Second},
		{Name: "left", Version: 3, Interval: 100 * time.Millisecond, Preempt: true, Group: "g"},
		{Name: "right", Version: 3, Interval: 100 * time.Millisecond, Preempt: true, Group: "g", Tracks: track},
	}
	for i := range list {
		list[i].VRID, list[i].Interface = uint8(i+1), "eth0"
		list[i].Advertised = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i), 0, 100})}
	}
	return list
}

// TestAfterEveryFaultThereIsOneActive: whatever happened, once the network is
// whole again there is exactly one Active: no second one for longer than an
// interval, and none missing for longer than Active_Down_Interval. A sync
// group is never split, and a node that stopped holds nothing.
func TestAfterEveryFaultThereIsOneActive(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		nodes := 2 + seed%4
		s := newSimulation(uint64(seed), nodes, simRouters())
		for _, n := range s.nodes {
			s.step(n, Event{Kind: Tracked, Name: "interface eth0", Up: true})
		}
		steps := 0
		check := func() {
			steps++
			s.checkGroups(t, seed)
			if s.whole() {
				s.checkSingle(t, seed)
			} else {
				s.disturb()
				clear(s.doubled)
				clear(s.missing)
				clear(s.misled)
			}
			if t.Failed() {
				t.Fatalf("seed %d:\n%s", seed, s.story())
			}
		}
		for range 60 {
			s.fault()
			s.run(time.Duration(s.rand.Int64N(int64(8*time.Second))), check)
		}
		if most := 400_000; steps > most {
			t.Errorf("seed %d: %d events, more than %d: a storm", seed, steps, most)
		}
		for _, n := range s.nodes {
			if n.up {
				s.step(n, Event{Kind: Stop})
				if slices.Contains(n.held, true) {
					t.Errorf("seed %d: node %d stopped and holds %v", seed, n.index, n.held)
				}
			}
		}
	}
}

func (s *simulation) checkGroups(t *testing.T, seed int) {
	for _, n := range s.nodes {
		if n.up && n.held[4] != n.held[5] {
			t.Errorf("seed %d, %v: node %d holds half a sync group", seed, s.now.Sub(epoch), n.index)
		}
	}
}

func (s *simulation) checkSingle(t *testing.T, seed int) {
	for i, r := range s.settings {
		actives := s.actives(i)
		able := slices.ContainsFunc(s.nodes, func(n *simNode) bool { return n.able(i) })
		since(&s.doubled[i], len(actives) > 1, s.now)
		since(&s.missing[i], len(actives) == 0 && able, s.now)
		since(&s.misled[i], len(actives) == 1 && s.told[i] >= 0 && s.told[i] != actives[0], s.now)
		if d := s.lasted(s.misled[i]); d > 2*r.Interval+announceEvery {
			t.Errorf("seed %d, %v: %s is held by %v, and clients believe node %d for %v of peace", seed, s.now.Sub(epoch), r.Name, actives, s.told[i], d)
		}
		// The other one is heard at its next advert at the latest.
		if d := s.lasted(s.doubled[i]); d > r.Interval+2*maxDelay {
			t.Errorf("seed %d, %v: %s is held by %v for %v of peace", seed, s.now.Sub(epoch), r.Name, actives, d)
		}
		// Active_Down_Interval, of which a stall may have added an interval each
		// time, and who answered our question another one.
		patience := 2*4*max(r.Interval, time.Second*time.Duration(3-r.Version)) + maxAsks*r.Interval
		if d := s.lasted(s.missing[i]); d > patience {
			t.Errorf("seed %d, %v: nobody holds %s for %v of peace", seed, s.now.Sub(epoch), r.Name, d)
		}
	}
}

// since keeps when something began that is the case.
func since(began *time.Time, is bool, now time.Time) {
	switch {
	case !is:
		*began = time.Time{}
	case began.IsZero():
		*began = now
	}
}

// lasted is for how long something was so while all was whole.
func (s *simulation) lasted(began time.Time) time.Duration {
	if began.IsZero() {
		return 0
	}
	if began.Before(s.wholeAt) {
		began = s.wholeAt
	}
	return s.now.Sub(began)
}

// TestTheFirstOfTheOrderIsActiveInTheEnd: preemption leads to the node with the
// highest priority.
func TestTheFirstOfTheOrderIsActiveInTheEnd(t *testing.T) {
	for seed := range 20 {
		s := newSimulation(uint64(seed), 3, simRouters())
		for _, n := range s.nodes {
			s.step(n, Event{Kind: Tracked, Name: "interface eth0", Up: true})
		}
		for range 10 {
			s.nodes[s.rand.IntN(3)].up = false
			s.run(5*time.Second, func() {})
			for _, n := range s.nodes {
				if !n.up {
					clear(n.held)
					s.boot(n)
					s.step(n, Event{Kind: Tracked, Name: "interface eth0", Up: true})
				}
			}
			s.run(10*time.Second, func() {})
		}
		for i, r := range s.settings {
			first := slices.MaxFunc(s.nodes, func(a, b *simNode) int {
				return int(a.m.routers[i].priority) - int(b.m.routers[i].priority)
			})
			if actives := s.actives(i); r.Preempt && !slices.Equal(actives, []int{first.index}) {
				t.Errorf("seed %d: %s is held by %v, not by %d\n%s", seed, r.Name, actives, first.index, s.story())
			}
		}
	}
}

// TestADeadActiveIsReplacedWithinActiveDownInterval holds the takeover to the
// microsecond: three intervals and a skew after the last advert was heard.
func TestADeadActiveIsReplacedWithinActiveDownInterval(t *testing.T) {
	for seed := range 50 {
		routers := simRouters()[:1]
		routers[0].Tracks = nil
		s := newSimulation(uint64(seed), 3, routers)
		s.run(time.Second+time.Duration(s.rand.Int64N(int64(time.Second))), func() {})
		active := s.nodes[s.actives(0)[0]]
		backup := slices.MaxFunc(s.nodes, func(a, b *simNode) int {
			return int(a.m.routers[0].priority)*min(1, max(0, a.index-active.index)+max(0, active.index-a.index)) -
				int(b.m.routers[0].priority)*min(1, max(0, b.index-active.index)+max(0, active.index-b.index))
		})
		active.up = false
		s.flights = nil
		r := backup.m.routers[0]
		due := r.restarted.Add(3*r.Interval + time.Duration(256-int(r.priority))*r.Interval/256)
		s.run(due.Sub(s.now)-time.Microsecond, func() {})
		if got := s.actives(0); len(got) != 0 {
			t.Errorf("seed %d: %v took over too soon", seed, got)
		}
		s.run(2*time.Microsecond, func() {})
		if got := s.actives(0); !slices.Equal(got, []int{backup.index}) {
			t.Errorf("seed %d: held by %v, want %d\n%s", seed, got, backup.index, s.story())
		}
	}
}

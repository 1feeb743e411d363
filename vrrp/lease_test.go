package vrrp

import (
	"math/rand/v2"
	"testing"
	"time"
)

var leaseEpoch = afterBoot(time.Hour)

// leaseNode is one node of a simulation in virtual time: the pure lease, a
// clock with a rate and an offset of its own, and the three that act on what
// it says: the applier, the guard and nobody else.
type leaseNode struct {
	core    *lease
	rate    float64
	offset  time.Duration
	paused  bool // SIGSTOP: the agent does nothing, the guard goes on
	cut     bool // from the store
	address bool
	until   time.Time // as the guard was told
	writes  []*leaseWrite
}

// leaseWrite is a proposal under way.
type leaseWrite struct {
	record   leaseRecord
	cas      uint64
	arrives  time.Duration // at the store
	answered time.Duration // at the node
	lost     bool          // the answer never comes: the node gives up waiting
	done     bool
	index    uint64
}

type leaseSim struct {
	t      *testing.T
	rand   *rand.Rand
	now    time.Duration
	record leaseRecord
	index  uint64 // of the record
	log    uint64 // of the store
	nodes  []*leaseNode
	sound  bool // every write is answered
}

func (n *leaseNode) clock(now time.Duration) time.Time {
	return leaseEpoch.Add(n.offset + time.Duration(float64(now)*n.rate))
}

const simTTL = 3 * time.Second

func newLeaseSim(t *testing.T, seed uint64, nodes int) *leaseSim {
	s := &leaseSim{t: t, rand: rand.New(rand.NewPCG(seed, 1)), log: 10}
	for i := range nodes {
		name := string(rune('a' + i))
		s.nodes = append(s.nodes, &leaseNode{
			core: &lease{node: name, run: name + "1", ttl: simTTL},
			rate: 0.9 + 0.2*s.rand.Float64(), offset: time.Duration(s.rand.Int64N(int64(24 * time.Hour))),
		})
	}
	return s
}

const simStep = 5 * time.Millisecond

// step lets a moment pass: the store, every node that runs, every guard.
func (s *leaseSim) step() {
	s.now += simStep
	for _, n := range s.nodes {
		s.deliver(n)
		if !n.paused {
			s.run(n)
		}
		if n.address && !n.clock(s.now).Before(n.until) {
			n.address = false // the guard
		}
	}
	holders := ""
	for _, n := range s.nodes {
		if n.address {
			holders += n.core.node
		}
	}
	if len(holders) > 1 {
		s.t.Fatalf("at %v the address is on %s", s.now, holders)
	}
}

// deliver carries writes to the store. One may arrive late, after its node has
// given it up.
func (s *leaseSim) deliver(n *leaseNode) {
	for _, w := range n.writes {
		if w.done || s.now < w.arrives {
			continue
		}
		w.done = true
		if s.log++; w.cas == s.index {
			s.record, s.index, w.index = w.record, s.log, s.log
		}
	}
}

// run is what the agent does at one moment.
func (s *leaseSim) run(n *leaseNode) {
	at := n.clock(s.now)
	if !n.cut { // the replica is up to date, or nothing is heard
		s.act(n, n.core.step(leaseEvent{kind: leaseSeen, record: s.record, index: s.index}, at))
	}
	pending := n.writes[:0]
	for _, w := range n.writes {
		switch {
		case s.now < w.answered || !w.done && !w.lost:
			pending = append(pending, w)
			continue
		case w.lost:
			s.act(n, n.core.step(leaseEvent{kind: leaseAnswer}, at))
			if !w.done { // it is on its way all the same
				w.answered = 1 << 62
				pending = append(pending, w)
			}
		default:
			s.act(n, n.core.step(leaseEvent{kind: leaseAnswer, index: w.index}, at))
		}
	}
	n.writes = append(pending, n.writes[len(n.writes):]...)
	s.act(n, n.core.step(leaseEvent{kind: leaseTick}, at))
	if !n.core.wanted && n.address { // the applier was told to remove it
		n.address = false
	}
	if !n.address {
		s.act(n, n.core.step(leaseEvent{kind: leaseRemoved}, at))
	}
}

func (s *leaseSim) act(n *leaseNode, actions []leaseAction) {
	for _, a := range append([]leaseAction{}, actions...) {
		switch a.kind {
		case leasePropose:
			delay := time.Duration(1 + s.rand.Int64N(int64(30*time.Millisecond)))
			w := &leaseWrite{record: a.record, cas: a.index, arrives: s.now + delay, answered: s.now + 2*delay}
			if n.cut || !s.sound && s.rand.IntN(20) == 0 {
				w.lost, w.answered = true, s.now+simTTL/3
				w.arrives = s.now + time.Duration(s.rand.Int64N(int64(3*simTTL)))
			}
			n.writes = append(n.writes, w)
		case leaseGrant:
			n.address, n.until = true, a.until
		case leaseRevoke:
			n.address = false
		}
	}
}

func (s *leaseSim) want(n *leaseNode, wanted bool) {
	kind := leaseUnwant
	if wanted {
		kind = leaseWant
	}
	s.act(n, n.core.step(leaseEvent{kind: kind}, n.clock(s.now)))
}

// until steps until done, at most for limit, and says how long it took.
func (s *leaseSim) until(limit time.Duration, what string, done func() bool) time.Duration {
	s.t.Helper()
	began := s.now
	for !done() {
		if s.now-began > limit {
			s.t.Fatalf("not within %v: %s", limit, what)
		}
		s.step()
	}
	return s.now - began
}

// TestAFencedAddressIsNeverOnTwoNodes: clocks of other rates and offsets, nodes
// that are stopped and cut off for longer than the lease, writes that arrive
// long after they were given up, and routers that are Active on several nodes
// at a time.
func TestAFencedAddressIsNeverOnTwoNodes(t *testing.T) {
	held, changes := time.Duration(0), 0
	for seed := range uint64(100) {
		s := newLeaseSim(t, seed, 3)
		last := ""
		for s.now < 2*time.Minute {
			for _, n := range s.nodes {
				switch s.rand.IntN(1200) { // each every 6 s
				case 0:
					s.want(n, !n.core.wanted && !n.paused)
				case 1:
					n.paused = !n.paused
				case 2:
					n.cut = !n.cut
				}
			}
			s.step()
			for _, n := range s.nodes {
				if !n.address {
					continue
				}
				if held += simStep; n.core.node != last {
					last, changes = n.core.node, changes+1
				}
			}
		}
	}
	if changes < 300 || held < 20*time.Minute {
		t.Errorf("held for %v, and by another %d times: the simulation shows nothing", held, changes)
	}
	t.Logf("held for %v of %v, by another %d times", held, 100*2*time.Minute, changes)
}

// pair is two nodes of which the first holds the address.
func pair(t *testing.T) (s *leaseSim, a, b *leaseNode) {
	t.Helper()
	s = newLeaseSim(t, 7, 2)
	a, b = s.nodes[0], s.nodes[1]
	a.rate, b.rate, s.sound = 1, 1, true
	s.want(a, true)
	took := s.until(time.Second, "the first holds it", func() bool { return a.address })
	if took > 200*time.Millisecond {
		t.Errorf("a free lease took %v", took)
	}
	return s, a, b
}

func TestALeaseIsRenewedForAsLongAsItIsWanted(t *testing.T) {
	s, a, _ := pair(t)
	for end := s.now + 5*time.Minute; s.now < end; {
		if s.step(); !a.address {
			t.Fatalf("the address left at %v", s.now)
		}
	}
}

func TestALeaseThatIsGivenBackIsTakenAtOnce(t *testing.T) {
	s, a, b := pair(t)
	s.want(b, true)
	for range 1000 {
		if s.step(); b.address {
			t.Fatal("two hold it")
		}
	}
	s.want(a, false)
	if took := s.until(simTTL, "the other holds it", func() bool { return b.address }); took > 300*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

func TestADeadHoldersLeaseIsTakenAfterTwiceItsTTLAndNotBefore(t *testing.T) {
	s, a, b := pair(t)
	s.want(b, true)
	a.paused = true
	left := s.until(simTTL, "the guard removes it", func() bool { return !a.address })
	if left > simTTL {
		t.Errorf("it was removed after %v", left)
	}
	took := left + s.until(3*simTTL, "the other holds it", func() bool { return b.address })
	if took < simTTL || took > 2*simTTL+simTTL/2 {
		t.Errorf("it was taken after %v, want at most twice %v and a little", took, simTTL)
	}
	t.Logf("removed after %v, taken after %v", left, took)
}

// TestAHolderWithoutAnAnswerLetsGoBeforeItsLeaseEnds: the agent itself, its
// guard not being needed.
func TestAHolderWithoutAnAnswerLetsGoBeforeItsLeaseEnds(t *testing.T) {
	s, a, _ := pair(t)
	a.cut = true
	a.until = a.clock(s.now).Add(time.Hour) // no guard
	if took := s.until(simTTL, "it lets go", func() bool { return !a.address }); took > simTTL-simTTL/leaseMargin+simStep {
		t.Errorf("it let go after %v", took)
	}
	a.cut = false
	s.until(simTTL, "it has it again", func() bool { return a.address })
}

func TestAnAddressThatCantBeRemovedKeepsItsLease(t *testing.T) {
	s, a, _ := pair(t)
	now := a.clock(s.now)
	record, index := a.core.record, a.core.index
	propose := func(actions []leaseAction) (found *leaseAction) {
		for i := range actions {
			if actions[i].kind == leasePropose {
				a := actions[i]
				found = &a
			}
		}
		return found
	}
	a.core.askedAt = time.Time{}
	a.core.step(leaseEvent{kind: leaseUnwant}, now)
	for range 100 {
		now = now.Add(100 * time.Millisecond)
		if p := propose(a.core.step(leaseEvent{kind: leaseTick}, now)); p != nil {
			if p.record.Free {
				t.Fatal("it was given back while the address is there")
			}
			index++
			a.core.step(leaseEvent{kind: leaseAnswer, index: index}, now)
		}
	}
	if index == a.core.index && a.core.record == record {
		t.Error("it was not renewed")
	}
	if a.core.held() {
		t.Error("what is not wanted may be here again")
	}
	if p := propose(a.core.step(leaseEvent{kind: leaseRemoved}, now.Add(time.Hour))); p == nil || !p.record.Free {
		t.Errorf("it is gone, and the lease is not given back: %v", p)
	}
}

func TestALeaseOfAnotherLifeOfThisNodeIsAStrangers(t *testing.T) {
	l := &lease{node: "a", run: "a2", ttl: simTTL}
	now := leaseEpoch
	l.step(leaseEvent{kind: leaseWant}, now)
	old := leaseRecord{Node: "a", Run: "a1", TTL: simTTL, Count: 1}
	if actions := l.step(leaseEvent{kind: leaseSeen, record: old, index: 5}, now); len(actions) != 0 {
		t.Errorf("it asked for %v", actions)
	}
	if actions := l.step(leaseEvent{kind: leaseTick}, now.Add(2*simTTL-1)); len(actions) != 0 {
		t.Errorf("before twice the TTL it asked for %v", actions)
	}
	if actions := l.step(leaseEvent{kind: leaseTick}, now.Add(2*simTTL)); len(actions) != 1 || actions[0].index != 5 {
		t.Errorf("after twice the TTL: %v", actions)
	}
}

func FuzzLeaseRecord(f *testing.F) {
	f.Add(leaseRecord{Node: "a", Run: "r", TTL: simTTL, Count: 7}.encode())
	f.Add([]byte(`{"node":"a","run":"r","ttl_ms":1}`))
	f.Add([]byte(`{"ttl_ms":9223372036854775807}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseLeaseRecord(text)
		if r.TTL < minLease || r.TTL > maxLease {
			t.Errorf("%q has a TTL of %v", text, r.TTL)
		}
		if err != nil {
			return
		}
		if again, err := parseLeaseRecord(r.encode()); err != nil || again != r {
			t.Errorf("%q: %+v comes back as %+v, %v", text, r, again, err)
		}
	})
}

package vrrp

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"holdfast/internal/state"
)

// Store is the cluster's store, for the leases of fenced routers.
type Store struct {
	Reader   state.Reader
	Proposer state.Proposer
}

// fenceEvery is how often a fence looks at the age of what this node knows of
// the store, and at what no event tells.
const fenceEvery = 100 * time.Millisecond

// fence keeps the leases of this node's fenced routers: the shell around
// lease. Its methods may be called from any goroutine and don't block.
type fence struct {
	store   Store
	node    string
	run     string
	log     *slog.Logger
	metrics *metrics
	told    *conditions
	// granted and revoked tell the loop; reachable, whether the store is.
	granted   func(router string)
	revoked   func(router, reason string)
	reachable func(router string, up bool)

	mu     sync.Mutex
	leases map[string]*fenced
	wake   chan struct{}
	asking int        // proposals under way
	idle   *sync.Cond // of mu: none is
}

// fenced is the lease of one router with what is told about it.
type fenced struct {
	lease
	router   string
	removal  uint64             // the last order to remove the addresses; older ones don't count
	up       bool               // the store, as was told
	said     bool               // whether it is up
	lacking  bool               // the condition is raised
	unread   bool               // its record, as was logged
	waits    time.Time          // the wait that was measured
	gone     bool               // no longer configured: it ends when nothing is held any more
	deadline context.CancelFunc // of the proposal under way
}

func newFence(node string, store Store) *fence {
	f := &fence{store: store, node: node, run: rand.Text(), leases: map[string]*fenced{}, wake: make(chan struct{}, 1)}
	f.idle = sync.NewCond(&f.mu)
	return f
}

// set makes these the fenced routers, by name with their TTL.
func (f *fence) set(ttls map[string]time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for router, ttl := range ttls {
		if l := f.leases[router]; l != nil {
			l.ttl, l.gone, l.said = ttl, false, false
			continue
		}
		f.leases[router] = &fenced{router: router, lease: lease{node: f.node, run: f.run, ttl: ttl}}
	}
	for router, l := range f.leases {
		if _, stays := ttls[router]; !stays {
			l.gone = true
		}
	}
	f.poke()
}

// want says whether a router is Active here. The addresses of one that is not
// are being removed by the order of that number.
func (f *fence) want(router string, wanted bool) (removal uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[router]
	if l == nil {
		return 0
	}
	kind := leaseWant
	if !wanted {
		kind = leaseUnwant
		l.removal++
	}
	f.step(l, leaseEvent{kind: kind}, bootNow())
	f.poke()
	return l.removal
}

// withdrawing gives the number of an order to remove the addresses.
func (f *fence) withdrawing(router string) (removal uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[router]
	if l == nil {
		return 0
	}
	l.removal++
	return l.removal
}

// removed says that an order to remove the addresses is carried out.
func (f *fence) removed(router string, removal uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.leases[router]; l != nil && l.removal == removal {
		f.step(l, leaseEvent{kind: leaseRemoved}, bootNow())
		f.poke()
	}
}

// valid tells until when a router may have its addresses: what was granted may
// have been taken back since.
func (f *fence) valid(router string) (until time.Time, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[router]
	if l == nil || !l.held() {
		return time.Time{}, false
	}
	return l.until, true
}

func (f *fence) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// follow keeps the leases until ctx ends. What it asked for may still be under
// way then: wait tells.
func (f *fence) follow(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var changed <-chan struct{}
		if f.store.Reader != nil {
			changed = f.store.Reader.Changed()
		}
		timer.Reset(f.look())
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-f.wake:
		case <-timer.C:
		}
	}
}

// look brings all leases up to date, and says when to look again.
func (f *fence) look() (again time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	again = time.Hour
	now := bootNow()
	for router, l := range f.leases {
		if l.gone && !l.wanted && !l.present && !l.mine() && l.askedAt.IsZero() {
			delete(f.leases, router)
			continue
		}
		f.read(l, now)
		f.step(l, leaseEvent{kind: leaseTick}, now)
		f.tell(l, now)
		again = min(again, fenceEvery)
		if at, ok := l.next(); ok {
			again = min(again, max(0, at.Sub(now)))
		}
	}
	return max(again, time.Millisecond)
}

// read looks what the store has.
func (f *fence) read(l *fenced, now time.Time) {
	if f.store.Reader == nil {
		f.say(l, false)
		return
	}
	snap := f.store.Reader.Snapshot()
	age, ok := snap.Age(time.Now())
	f.say(l, ok && age < l.ttl)
	if !ok {
		return
	}
	doc, _ := snap.Document(nil, KindLease, l.router)
	if doc == nil {
		f.step(l, leaseEvent{kind: leaseSeen}, now)
		return
	}
	record, err := parseLeaseRecord(doc.Value)
	if err != nil && !l.unread {
		f.log.Error("a lease that can't be read is left alone for twice the longest", "router", l.router, "error", err)
	}
	l.unread = err != nil
	f.step(l, leaseEvent{kind: leaseSeen, record: record, index: doc.ModifyIndex}, now)
}

// say tells whether the store is reachable, when that is news.
func (f *fence) say(l *fenced, up bool) {
	if l.said && l.up == up {
		return
	}
	l.said, l.up = true, up
	f.reachable(l.router, up)
}

// step gives a lease an event and does what it answers. f.mu is held.
func (f *fence) step(l *fenced, e leaseEvent, now time.Time) {
	for _, a := range l.lease.step(e, now) {
		switch a.kind {
		case leasePropose:
			f.propose(l, a)
		case leaseGrant:
			if l.waits != l.wantedAt { // the first since it was wanted
				l.waits = l.wantedAt
				f.metrics.leaseWait.Observe(now.Sub(l.wantedAt).Seconds())
			}
			f.granted(l.router)
		case leaseRevoke:
			l.removal++
			f.metrics.leaseLosses.WithLabelValues(l.router).Inc()
			f.revoked(l.router, a.reason)
		}
	}
}

// propose writes a record beside us.
func (f *fence) propose(l *fenced, a leaseAction) {
	command := state.PutDocument{Verb: state.CAS, Document: state.Document{
		Kind: KindLease, Key: l.router, Value: a.record.encode(), ModifyIndex: a.index,
	}}
	ctx, cancel := context.WithTimeout(context.Background(), l.ttl/3)
	l.deadline = cancel
	f.asking++
	go func() {
		defer cancel()
		index, err := f.store.Proposer.Propose(ctx, command)
		f.metrics.leaseWrites.WithLabelValues(l.router, leaseOutcome(err)).Inc()
		if err != nil {
			index = 0
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		now := bootNow()
		f.read(l, now) // what it lost against
		f.step(l, leaseEvent{kind: leaseAnswer, index: index}, now)
		f.poke()
		if f.asking--; f.asking == 0 {
			f.idle.Broadcast()
		}
	}()
}

// wait waits until no proposal is under way: for a third of the longest TTL at
// most, unless something asks anew. An applier may ask while others wait, which a
// sync.WaitGroup doesn't bear.
func (f *fence) wait() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.asking > 0 {
		f.idle.Wait()
	}
}

func leaseOutcome(err error) string {
	switch {
	case err == nil:
		return "written"
	case errors.Is(err, state.ErrConflict):
		return "conflict"
	}
	return "failed"
}

// tell raises the condition of a router that is Active and has no lease for
// long, and ends it.
func (f *fence) tell(l *fenced, now time.Time) {
	lacks := !l.gone && f.store.Reader == nil || l.wanted && !l.held() && now.Sub(l.wantedAt) >= leaseUnheldTTLs*l.ttl
	if lacks != l.lacking {
		l.lacking = lacks
		f.told.lease(l.router, lacks, f.store.Reader == nil, l.record)
	}
}

// end gives back what is no longer held, for at most limit, and ends what is
// asked.
func (f *fence) end(limit time.Duration) {
	timeout := time.After(limit)
	for f.owes() {
		f.look()
		select {
		case <-f.wake:
		case <-time.After(leaseGiveBackEvery):
		case <-timeout:
			f.log.Warn("a lease was not given back, so that it must run out")
			f.cancel()
			return
		}
	}
	f.wait()
}

const leaseGiveBackEvery = 10 * time.Millisecond

// owes tells whether a lease is still to be given back.
func (f *fence) owes() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.leases {
		if !l.askedAt.IsZero() || l.mine() && !l.wanted && !l.present {
			return true
		}
	}
	return false
}

func (f *fence) cancel() {
	f.mu.Lock()
	for _, l := range f.leases {
		if l.deadline != nil {
			l.deadline()
		}
	}
	f.mu.Unlock()
	f.wait()
}

// LeaseReport is how a fenced router stands with its lease.
type LeaseReport struct {
	Held   bool          // this node may have the addresses
	Left   time.Duration // until it must have removed them, unless it renews
	Holder string        // whose the store's record is; "": nobody's
	Wanted bool          // the router is Active here
	Store  bool          // the store is reachable
}

func (f *fence) report(router string) *LeaseReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[router]
	if l == nil {
		return nil
	}
	r := &LeaseReport{Held: l.held(), Wanted: l.wanted, Store: l.up}
	if l.held() {
		r.Left = max(0, l.until.Sub(bootNow()))
	}
	if l.index != 0 && !l.record.Free {
		r.Holder = l.record.Node
	}
	return r
}

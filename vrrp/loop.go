package vrrp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/rawsock"
	"holdfast/internal/kernel/sched"
)

// loop owns the protocol: the machine, its deadlines and all its sockets, on
// one thread. Nothing on it waits for anything but the poller: what can block
// is done by the appliers, the guard's writer and the hooks.
type loop struct {
	log      *slog.Logger
	metrics  *metrics
	told     *conditions
	guard    *guardian
	hooks    *hooks
	appliers *appliers
	fence    *fence
	orders   *standingOrders

	poller     *rawsock.Poller
	mail       mailbox
	machine    *Machine
	instances  []*instance // by the machine's index
	gone       []*instance // of the Reconfigure under way
	ports      map[int]*port
	listening  []*port // the same, in a list
	table      *linkTable
	dirty      bool      // where routers belong is to be looked at again
	recheck    time.Time // and at this time anyway; zero: never
	patience   time.Duration
	words      map[string]Event // the last about each tracked thing
	realtime   int
	grace      time.Duration // of the restart that ends the loop
	everywhere Hooks
	holds      func(router string, holds bool) // may be nil
	keeps      func(netip.Addr) bool           // may be nil
	garbage    garbage
	stalls     int // since stallSaid
	stallSaid  time.Time
	advert     Advert
	ended      bool
}

// maxBatch bounds what is received from one socket before timers have their
// turn: a flood must not keep us from advertising.
const maxBatch = 1024

// claimEvery bounds how often an applier hears of claims: one is as good as a
// storm of them.
const claimEvery = 5 * time.Millisecond

// mailbox holds what other goroutines want done on the loop.
type mailbox struct {
	mu     sync.Mutex
	queue  []func()
	spare  []func()
	closed bool
	wake   func()        // called with mu held: never after close
	ended  chan struct{} // closed by close
}

func newMailbox(wake func()) mailbox { return mailbox{wake: wake, ended: make(chan struct{})} }

// post puts f in the queue; false: the loop has ended.
func (m *mailbox) post(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.queue = append(m.queue, f)
	if len(m.queue) == 1 {
		m.wake()
	}
	return true
}

// take gives everything that is queued. What it gave before is reused.
func (m *mailbox) take() []func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := m.queue
	clear(m.spare)
	m.queue, m.spare = m.spare[:0], taken
	return taken
}

func (m *mailbox) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		close(m.ended)
	}
	m.closed, m.queue = true, nil
}

// do runs f on the loop and waits for it, but not beyond the end of the loop.
func (l *loop) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	if !l.mail.post(func() { defer close(done); f() }) {
		return ErrStopped
	}
	select {
	case <-done:
		return nil
	case <-l.mail.ended:
		select {
		case <-done: // it was the last
			return nil
		default:
			return ErrStopped
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run is the loop, until something that it was sent ends it. It locks its
// goroutine to a thread, which ends with it.
func (l *loop) run() (err error) {
	runtime.LockOSThread()
	defer l.mail.close()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	l.becomeRealtime()
	for !l.ended {
		due := l.next()
		ready, err := l.poller.Wait(due)
		if err != nil {
			return fmt.Errorf("vrrp: wait for packets: %w", err)
		}
		late := time.Duration(0)
		if !due.IsZero() {
			late = max(0, time.Since(due))
		}
		for _, f := range l.mail.take() {
			f()
		}
		if l.ended {
			break
		}
		for _, socket := range ready {
			l.receiveFrom(socket)
		}
		l.tick(late)
		l.resolve(time.Now())
		l.orders.keep(l)
	}
	return nil
}

// finish ends the loop, the way the service ends.
func (l *loop) finish(how end) {
	now := time.Now()
	switch how {
	case handOver:
		l.step(Event{Kind: Stop, At: now})
	case restart:
		l.guard.restart(l.patienceOfSuccessor())
		l.step(Event{Kind: Suspend, At: now, Grace: l.grace})
	case crash:
	}
	l.ended = true
}

// patienceOfSuccessor is how long the guard gives a successor for each router:
// for as long as its peers wait. Version 2 can't ask them for more.
func (l *loop) patienceOfSuccessor() map[string]time.Duration {
	of := map[string]time.Duration{}
	for _, in := range l.instances {
		switch {
		case in.state != Active:
		case in.core.Version == 3:
			of[in.settings.Name] = max(l.grace, guardPatience(&in.core))
		default:
			of[in.settings.Name] = guardPatience(&in.core)
		}
	}
	return of
}

// guardPatience is how long after a crash a successor may still adopt: peers
// wait for three intervals from the last advert, which may be one old.
func guardPatience(r *Router) time.Duration { return 2 * r.Interval }

// next is when something is due; zero: never.
func (l *loop) next() time.Time {
	at, ok := l.machine.Next()
	if !ok || !l.recheck.IsZero() && l.recheck.Before(at) {
		return l.recheck
	}
	return at
}

// tick lets the machine act on a deadline that has passed. Everything that is
// queued is received first: an advert that came in time counts, however late
// we look. That we look late is said, since then others may have acted.
func (l *loop) tick(late time.Duration) {
	at, ok := l.machine.Next()
	passed := ok && !time.Now().Before(at)
	if !passed && late <= l.patience {
		return
	}
	l.metrics.delay.Observe(late.Seconds())
	for _, p := range l.listening {
		p.receive(l)
	}
	if late > l.patience {
		l.stalled(late)
	}
	l.step(Event{Kind: Tick, At: time.Now()})
}

// stallsEvery bounds how often stalls are logged: a machine that is too busy
// has many.
const stallsEvery = 10 * time.Second

// stalled tells the machine that this process did not run when it should have.
func (l *loop) stalled(late time.Duration) {
	now := time.Now()
	l.metrics.stalls.Inc()
	l.metrics.stalled.Add(late.Seconds())
	l.stalls++
	if now.Sub(l.stallSaid) >= stallsEvery {
		l.log.Warn("this process did not run when it should have", "for", late, "times", l.stalls)
		l.stallSaid, l.stalls = now, 0
	}
	l.step(Event{Kind: Stalled, At: now, Stall: late})
}

// step gives the machine an event and does what it answers.
func (l *loop) step(e Event) {
	l.act(l.machine.Step(e))
	switch e.Kind {
	case Tracked, Yield, Pull, Release: // what priorities hang on
		for i, in := range l.instances {
			in.metrics.priority.Set(float64(l.machine.Priority(i)))
		}
	default:
	}
}

// receiveFrom empties the queue of a socket that has something.
func (l *loop) receiveFrom(ready rawsock.Pollable) {
	for _, p := range l.listening {
		if p.receiveFrom(l, ready) {
			return
		}
	}
}

// packet takes a packet of protocol 112.
func (l *loop) packet(p *port, got rawsock.Packet, byVRID *[256]*instance) {
	if err := l.advert.Parse(got.Payload, got.Src, got.Dst); err != nil {
		l.drop(p, dropOf(err), got.Src, 0)
		return
	}
	in := byVRID[l.advert.VRID]
	if in == nil {
		l.drop(p, dropVRID, got.Src, l.advert.VRID)
		return
	}
	if got.TTL < in.settings.MinTTL { // RFC 9568 §5.1.1.3: it crossed a router, and so may be anybody's
		l.drop(p, dropTTL, got.Src, l.advert.VRID)
		return
	}
	now := time.Now()
	l.step(Event{Kind: Received, At: now, Router: in.index, From: got.Src, Advert: &l.advert})
	// The machine counts what it did not take.
	counters := l.machine.Counters(in.index)
	if counters.Dropped == in.dropped {
		in.metrics.received.Inc()
		in.lastSeen = now
		return
	}
	for reason := range counters.Dropped {
		if counters.Dropped[reason] != in.dropped[reason] {
			l.drop(p, Drop(reason).String(), got.Src, l.advert.VRID)
		}
	}
	in.dropped = counters.Dropped
}

// claim takes somebody's word that he has an address of ours.
func (l *loop) claim(p *port, c rawsock.Claim) {
	in := p.holder(c.Addr)
	if in == nil || len(c.MAC) == 0 {
		return
	}
	e := Event{Kind: Owner, At: time.Now(), Router: in.index}
	copy(e.MAC[:], c.MAC[max(0, len(c.MAC)-len(e.MAC)):]) // InfiniBand: the end of it tells ports apart
	l.step(e)
	if in.applier == nil {
		return
	}
	if in.lingers {
		in.lingers = false
		in.applier.withdraw(in.settings.Name, 0)
	}
	if in.state != Active {
		return
	}
	in.metrics.conflicts.Inc()
	if e.At.Sub(in.contested) >= claimEvery {
		in.contested = e.At
		in.applier.conflict(in, c)
	}
}

// linkChanged takes notices of the kernel about interfaces and addresses.
func (l *loop) linkChanged(e link.Event) {
	if l.table.take(e) {
		l.dirty = true
	}
}

// becomeRealtime asks for SCHED_FIFO where it is configured.
func (l *loop) becomeRealtime() {
	if l.realtime == 0 {
		l.told.clear(conditionRealtime)
		return
	}
	if err := sched.Realtime(l.realtime); err != nil {
		l.told.realtime(l.realtime, err)
		return
	}
	l.told.clear(conditionRealtime)
	l.log.Info("adverts are sent on a thread of their own class", "scheduler", "SCHED_FIFO", "priority", l.realtime)
}

// changeRealtime follows a reload.
func (l *loop) changeRealtime() {
	if l.realtime == 0 {
		if err := sched.Ordinary(); err != nil {
			l.log.Warn("the thread keeps its class", "error", err)
		}
	}
	l.becomeRealtime()
}

// setPatience decides how late is too late: when half of what keeps the next
// backup from acting has passed.
func (l *loop) setPatience() {
	const least, most = 5 * time.Millisecond, time.Second
	l.patience = most
	for _, in := range l.instances {
		l.patience = min(l.patience, max(least, skewTime(in.core.Version, in.core.Priority, in.core.Interval)/2))
	}
}

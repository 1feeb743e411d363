package vrrp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/rawsock"
)

// appliers are the goroutines that change addresses, one an interface: the
// kernel takes its time when others hold its lock, and adverts must go on.
type appliers struct {
	handle  *link.Handle
	journal *journal
	told    *conditions
	metrics *metrics
	log     *slog.Logger

	mu      sync.Mutex
	byIndex map[int]*applier
	running sync.WaitGroup
}

// get gives the applier of an interface, and starts one where there is none.
func (all *appliers) get(on link.Link) (*applier, error) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if a := all.byIndex[on.Index]; a != nil && a.revive(on) {
		return a, nil
	}
	neighbors, err := rawsock.OpenNeighbors(interfaceOf(&on))
	if err != nil {
		return nil, fmt.Errorf("open a socket for announcements: %w", err)
	}
	a := &applier{
		all: all, link: on, neighbors: neighbors, log: all.log.With("interface", on.Name),
		wake: make(chan struct{}, 1), wanted: map[netip.Prefix]bool{},
		verifications: rate.NewLimiter(rate.Every(verifyPause), verifyBurst),
	}
	all.byIndex[on.Index] = a
	all.running.Go(a.run)
	return a, nil
}

// rename follows another name of an interface.
func (all *appliers) rename(on link.Link) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if a := all.byIndex[on.Index]; a != nil {
		a.revive(on)
	}
}

// release lets the applier of an interface end when it has done what it was
// told.
func (all *appliers) release(index int) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if a := all.byIndex[index]; a != nil {
		a.release()
	}
}

// removed tells of an address that was taken away, by us or by another.
func (all *appliers) removed(index int, prefix netip.Prefix) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if a := all.byIndex[index]; a != nil {
		a.verify(prefix)
	}
}

// verifyAll has every applier look at its addresses: notices were lost.
func (all *appliers) verifyAll() {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, a := range all.byIndex {
		a.verify(netip.Prefix{})
	}
}

// close ends all appliers once they have done what they were told. What they
// hold stays.
func (all *appliers) close() {
	all.mu.Lock()
	for _, a := range all.byIndex {
		a.release()
	}
	all.mu.Unlock()
	all.running.Wait()
}

// applied is what an applier tells about a router.
type applied struct {
	mu            sync.Mutex
	errs          map[netip.Prefix]string // what is wrong with an address; absent: nothing
	present       map[netip.Prefix]int    // on which interface; 0: on none
	announcements uint64
	returned      uint64
	announced     time.Time
	claimant      string
}

func newApplied() *applied {
	return &applied{errs: map[netip.Prefix]string{}, present: map[netip.Prefix]int{}}
}

type errandKind uint8

const (
	errandHold errandKind = iota
	errandWithdraw
	errandAnnounce
	errandConflict
	errandReopen
	errandLease
)

// errand is something for an applier to do.
type errand struct {
	kind    errandKind
	router  string
	holding *holding      // of Hold: what to hold
	linger  time.Duration // of Withdraw
	done    func(ok bool) // of Withdraw: they are gone, or one could not be removed; may be nil
	until   time.Time     // of Lease
	claim   rawsock.Claim
	link    link.Link // of Reopen
}

// applier puts the addresses of routers on one interface, and keeps them there.
type applier struct {
	all *appliers
	log *slog.Logger

	mu       sync.Mutex
	queue    []errand
	wanted   map[netip.Prefix]bool // held, for verify
	missing  bool                  // one of them may be
	released bool
	ended    bool
	wake     chan struct{}

	// Below: the applier's goroutine.
	link          link.Link
	neighbors     *rawsock.Neighbors
	holdings      []*holding
	verifications *rate.Limiter
	verifyAt      time.Time
}

// post gives it something to do; false: it has ended, and nobody will.
func (a *applier) post(o errand) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return false
	}
	a.queue = append(a.queue, o)
	a.poke()
	return true
}

func (a *applier) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// hold makes a router's addresses wanted here: these and no others of it.
func (a *applier) hold(in *instance) {
	a.post(errand{kind: errandHold, router: in.settings.Name, holding: &holding{
		router: in.settings.Name, log: in.log, metrics: in.metrics, applied: in.applied, since: time.Now(),
		source: in.core.Source, prefixes: slices.Clone(in.core.Held), settings: in.settings.Announce,
		fenced: in.core.Fenced, until: in.leasedUntil,
	}})
}

// withdraw makes them unwanted: at once, or at the latest after linger.
func (a *applier) withdraw(router string, linger time.Duration) {
	a.post(errand{kind: errandWithdraw, router: router, linger: linger})
}

// announce tells the neighbours where they are, now and as often as configured.
func (a *applier) announce(in *instance) {
	a.post(errand{kind: errandAnnounce, router: in.settings.Name})
}

// conflict takes another's claim.
func (a *applier) conflict(in *instance, claim rawsock.Claim) {
	a.post(errand{kind: errandConflict, router: in.settings.Name, claim: rawsock.Claim{
		Addr: claim.Addr, MAC: slices.Clone(claim.MAC),
	}})
}

// verify has the addresses looked at when prefix, which was removed, is one of
// them; the zero Prefix: anyway.
func (a *applier) verify(prefix netip.Prefix) {
	a.mu.Lock()
	concerned := !prefix.IsValid() || a.wanted[prefix]
	a.missing = a.missing || concerned
	a.mu.Unlock()
	if concerned {
		a.poke()
	}
}

func (a *applier) release() {
	a.mu.Lock()
	a.released = true
	a.mu.Unlock()
	a.poke()
}

// revive takes a release back; false: it has ended. An interface that has
// another hardware address needs other sockets.
func (a *applier) revive(on link.Link) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return false
	}
	a.released = false
	a.queue = append(a.queue, errand{kind: errandReopen, link: on})
	a.poke()
	return true
}

// take gives what is to be done; ended: nothing, and no more will come.
func (a *applier) take() (orders []errand, missing, ended bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	orders, missing = a.queue, a.missing
	a.queue, a.missing = nil, false
	a.ended = a.released && len(orders) == 0
	return orders, missing, a.ended
}

func (a *applier) run() {
	defer func() { _ = a.neighbors.Close() }()
	defer a.leave()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		orders, missing, ended := a.take()
		if ended {
			a.dropLingering(time.Time{})
			return
		}
		a.apply(orders)
		now := time.Now()
		a.dropLingering(now)
		if missing && a.verifyAt.IsZero() {
			a.verifyAt = now
		}
		if !a.verifyAt.IsZero() && !now.Before(a.verifyAt) {
			a.putBack(now)
		}
		next := a.verifyAt
		for _, h := range a.holdings {
			next = earlier(next, h.work(a, now))
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-a.wake:
		case <-timer.C:
		}
	}
}

// leave takes the applier off the list, unless another took its place.
func (a *applier) leave() {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if a.all.byIndex[a.link.Index] == a {
		delete(a.all.byIndex, a.link.Index)
	}
}

// earlier is the earlier of two times; zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// current leaves out what a later withdrawal made moot: an announcement that
// comes late would mislead the neighbours about who took over meanwhile.
func current(orders []errand) []errand {
	return slices.DeleteFunc(slices.Clone(orders), func(o errand) bool {
		if o.kind != errandHold && o.kind != errandAnnounce {
			return false
		}
		for i := len(orders) - 1; i >= 0; i-- {
			if orders[i].router == o.router && (orders[i].kind == errandHold || orders[i].kind == errandWithdraw) {
				return orders[i].kind == errandWithdraw
			}
		}
		return false
	})
}

// apply does a batch of orders, with one journal entry before and one after.
func (a *applier) apply(orders []errand) {
	orders = current(orders)
	var ours []entry
	for _, o := range orders {
		if o.kind == errandHold {
			ours = append(ours, a.entries(o.router, o.holding.prefixes)...)
		}
	}
	if len(ours) > 0 {
		a.all.told.journal(a.all.journal.add(ours))
	}
	var gone []entry
	for _, o := range orders {
		gone = append(gone, a.do(o)...)
	}
	if len(gone) == 0 {
		return
	}
	gone = slices.DeleteFunc(gone, func(e entry) bool { // held again since
		return slices.ContainsFunc(a.holdings, func(h *holding) bool { return h.router == e.Router && slices.Contains(h.prefixes, e.Prefix) })
	})
	a.all.told.journal(a.all.journal.remove(gone))
}

func (a *applier) entries(router string, prefixes []netip.Prefix) []entry {
	entries := make([]entry, len(prefixes))
	for i, prefix := range prefixes {
		entries[i] = entry{Index: a.link.Index, Name: a.link.Name, Prefix: prefix, Router: router}
	}
	return entries
}

func (a *applier) holds(prefix netip.Prefix) bool {
	return slices.ContainsFunc(a.holdings, func(h *holding) bool { return slices.Contains(h.prefixes, prefix) })
}

// do does one order and returns what is ours no more.
func (a *applier) do(o errand) (gone []entry) {
	at := slices.IndexFunc(a.holdings, func(h *holding) bool { return h.router == o.router })
	switch o.kind {
	case errandHold:
		before := &holding{}
		if at >= 0 {
			before = a.holdings[at]
			a.holdings[at] = o.holding
			o.holding.inherit(before)
		} else {
			a.holdings = append(a.holdings, o.holding)
		}
		a.want()
		gone = a.drop(before, func(p netip.Prefix) bool { return !slices.Contains(o.holding.prefixes, p) })
		o.holding.add(a)
	case errandWithdraw:
		if o.done != nil {
			return a.dropFenced(o, at)
		}
		if at < 0 {
			return a.dropLeft(o.router)
		}
		if o.linger > 0 {
			a.holdings[at].leave(a, time.Now().Add(o.linger))
			return nil
		}
		return a.dropAll(at)
	case errandAnnounce:
		if at >= 0 {
			a.holdings[at].announce(a)
		}
	case errandConflict:
		if at >= 0 {
			a.holdings[at].dispute(a, o.claim)
		}
	case errandReopen:
		a.reopen(o.link)
	case errandLease:
		if at >= 0 {
			a.holdings[at].renew(a, o.until)
		}
	}
	return gone
}

// dropAll gives up a holding with all of its addresses.
func (a *applier) dropAll(at int) (gone []entry) {
	before := a.holdings[at]
	a.holdings = slices.Delete(a.holdings, at, at+1)
	a.want()
	gone = a.drop(before, func(netip.Prefix) bool { return true })
	before.end(a)
	return gone
}

// dropLingering gives up what stayed for the one who took over; the zero time:
// all of it.
func (a *applier) dropLingering(now time.Time) {
	var gone []entry
	for i := len(a.holdings) - 1; i >= 0; i-- {
		if at := a.holdings[i].leaveAt; !at.IsZero() && (now.IsZero() || !now.Before(at)) {
			gone = append(gone, a.dropAll(i)...)
		}
	}
	if len(gone) > 0 {
		a.all.told.journal(a.all.journal.remove(gone))
	}
}

// want tells verify what is held.
func (a *applier) want() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.wanted)
	for _, h := range a.holdings {
		for _, prefix := range h.prefixes {
			a.wanted[prefix] = true
		}
	}
}

// drop removes those addresses of a holding that are no longer wanted.
func (a *applier) drop(h *holding, unwanted func(netip.Prefix) bool) (gone []entry) {
	for _, prefix := range h.prefixes {
		if !unwanted(prefix) {
			continue
		}
		if !h.fenced && a.holds(prefix) { // a reload gave it to another router; what was lent would end by itself
			h.applied.gone(a.link.Index, prefix)
			gone = append(gone, a.entries(h.router, []netip.Prefix{prefix})...)
			continue
		}
		err := a.all.handle.Remove(link.Addr{Link: a.link.Index, Prefix: prefix})
		if err != nil {
			h.log.Error("an address could not be removed", "address", prefix, "error", err)
			h.applied.fail(a.link.Index, prefix, err)
			continue // it stays in the journal: a successor will try
		}
		h.applied.gone(a.link.Index, prefix)
		gone = append(gone, a.entries(h.router, []netip.Prefix{prefix})...)
	}
	return gone
}

// dropLeft removes what a predecessor left of a router that was not adopted.
func (a *applier) dropLeft(router string) (gone []entry) {
	for _, e := range a.all.journal.list() {
		if e.Router != router || e.Index != a.link.Index {
			continue
		}
		if err := a.all.handle.Remove(link.Addr{Link: e.Index, Prefix: e.Prefix}); err != nil {
			a.log.Error("an address that a predecessor left could not be removed", "address", e.Prefix, "error", err)
			continue
		}
		gone = append(gone, e)
	}
	return gone
}

// reopen follows a change of the interface's name or hardware address.
func (a *applier) reopen(on link.Link) {
	same := sameHardware(&on, &a.link)
	a.link = on
	if same {
		return
	}
	opened, err := rawsock.OpenNeighbors(interfaceOf(&on))
	if err != nil {
		a.log.Error("announcements go out from the old hardware address", "error", err)
		return
	}
	_ = a.neighbors.Close()
	a.neighbors = opened
	for _, h := range a.holdings {
		h.announce(a)
	}
}

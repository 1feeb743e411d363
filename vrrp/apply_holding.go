package vrrp

import (
	"log/slog"
	"net/netip"
	"time"

	"holdfast/internal/kernel/rawsock"
)

// retryEvery is how often an address that can't be added is tried again.
const retryEvery = time.Second

// A claim by another is answered with an announcement and a question. Who
// answers the question is a second owner; a claim alone may be the last word
// of the one before us. Then both are repeated until as many questions in a
// row had no answer.
const (
	contestEvery = time.Second
	contestQuiet = 3
	// contestSoon is how soon after a further claim they are told again.
	contestSoon = 100 * time.Millisecond
)

// holding is the addresses of one router that are held on an interface. Its
// applier's goroutine owns it.
type holding struct {
	router   string
	log      *slog.Logger
	metrics  *routerMetrics
	applied  *applied
	source   netip.Addr
	prefixes []netip.Prefix
	settings Announcements
	since    time.Time // the loop decided; zero: it was measured
	fenced   bool
	until    time.Time // of a fenced one: by bootNow

	leaveAt time.Time // withdrawn, but for the moment until another has them; zero: not
	retry   time.Time // for what could not be added; zero: nothing
	bursts  int       // to come, the refresh apart
	next    time.Time // announcement; zero: none
	contest struct {
		addr   netip.Addr // zero: there is none
		mac    string
		next   time.Time
		quiet  int
		proven bool
	}
}

// inherit goes on with what was under way for the same router.
func (h *holding) inherit(before *holding) {
	h.bursts, h.next, h.contest = before.bursts, before.next, before.contest
}

// add puts the addresses on the interface. What is there already stays as it is.
func (h *holding) add(a *applier) {
	h.retry = time.Time{}
	var failed error
	for _, prefix := range h.prefixes {
		if err := h.put(a, prefix); err != nil {
			failed = err
			h.log.Error("an address could not be added", "address", prefix, "error", err)
			h.applied.fail(a.link.Index, prefix, err)
			continue
		}
		h.applied.add(a.link.Index, prefix)
	}
	a.all.told.address(h.router, failed)
	if failed != nil {
		h.retry = time.Now().Add(retryEvery)
	}
}

// leave ends all but the addresses, which stay until at.
func (h *holding) leave(a *applier, at time.Time) {
	h.settle(a)
	h.leaveAt, h.retry, h.next, h.bursts = at, time.Time{}, time.Time{}, 0
}

// announce begins the announcements anew.
func (h *holding) announce(a *applier) {
	h.bursts = max(h.settings.Repeat, 1)
	h.burst(a, time.Now())
	if !h.since.IsZero() {
		a.all.metrics.takeover.Observe(time.Since(h.since).Seconds())
		h.since = time.Time{}
	}
}

func (h *holding) burst(a *applier, now time.Time) {
	if h.lapsed() {
		h.next, h.bursts = time.Time{}, 0
		return
	}
	sent := 0
	for _, prefix := range h.prefixes {
		if err := a.neighbors.Announce(prefix.Addr()); err != nil {
			h.log.Debug("announce", "address", prefix.Addr(), "error", err)
			continue
		}
		sent++
	}
	h.metrics.announcements.Add(float64(sent))
	h.applied.announce(sent, now)
	h.bursts = max(h.bursts-1, 0)
	switch {
	case h.bursts > 0:
		h.next = now.Add(h.settings.Every)
	case h.settings.Refresh > 0:
		h.next = now.Add(h.settings.Refresh)
	default:
		h.next = time.Time{}
	}
}

// work does what is due and says when there is more; zero: never.
func (h *holding) work(a *applier, now time.Time) (next time.Time) {
	if due(h.retry, now) {
		h.add(a)
		h.announce(a)
	}
	if due(h.next, now) {
		h.burst(a, now)
	}
	if due(h.contest.next, now) {
		h.ask(a, now)
	}
	return earlier(earlier(h.retry, h.leaveAt), earlier(h.next, h.contest.next))
}

func due(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// restore adds what is missing.
func (h *holding) restore(a *applier, present map[netip.Prefix]bool) {
	for _, prefix := range h.prefixes {
		if present[prefix] || !h.applied.isThere(a.link.Index, prefix) {
			continue
		}
		if h.lapsed() {
			continue // the kernel or the guard took it back
		}
		err := h.put(a, prefix)
		if err != nil {
			h.applied.fail(a.link.Index, prefix, err)
			h.retry = time.Now().Add(retryEvery)
			continue
		}
		_ = a.neighbors.Announce(prefix.Addr()) // the next burst says it again
		h.metrics.returned.Inc()
		h.applied.putBack()
		h.log.Warn("an address that this node holds was removed by another program or person: put back", "address", prefix)
	}
}

// end ends what was told about the holding.
func (h *holding) end(a *applier) {
	a.all.told.clear(conditionOf(h.router, aboutAddress))
	h.settle(a)
}

// dispute takes another's claim to an address that we hold.
func (h *holding) dispute(a *applier, claim rawsock.Claim) {
	now := time.Now()
	c := &h.contest
	mac := claim.MAC.String()
	if !c.addr.IsValid() {
		c.addr, c.mac = claim.Addr, mac
		h.ask(a, now)
		return
	}
	c.quiet, c.next = 0, earlier(c.next, now.Add(contestSoon))
	if c.proven && c.mac == mac && c.addr == claim.Addr {
		return
	}
	c.addr, c.mac, c.proven = claim.Addr, mac, true
	h.log.Warn("another answers for an address that this node holds", "address", claim.Addr, "mac", mac)
	h.applied.claim(mac)
	a.all.told.duplicate(h.router, claim.Addr, mac)
}

// ask announces the contested address and asks who else has it.
func (h *holding) ask(a *applier, now time.Time) {
	c := &h.contest
	if c.quiet == contestQuiet || h.lapsed() {
		h.settle(a)
		return
	}
	c.quiet++
	c.next = now.Add(contestEvery)
	if a.neighbors.Announce(c.addr) == nil {
		h.metrics.announcements.Inc()
		h.applied.announce(1, now)
	}
	if err := a.neighbors.Ask(c.addr, h.source); err != nil {
		h.log.Debug("ask who has an address", "address", c.addr, "error", err)
	}
}

// settle ends a contest.
func (h *holding) settle(a *applier) {
	if h.contest.proven {
		h.log.Info("nobody else answers for the address any more", "address", h.contest.addr)
		h.applied.claim("")
		a.all.told.clear(conditionOf(h.router, aboutDuplicate))
	}
	h.contest.addr, h.contest.next, h.contest.quiet, h.contest.proven = netip.Addr{}, time.Time{}, 0, false
}

// add notes that an address is on an interface. When a router moves to another
// one, the applier of the old may still be busy: what it says after that is
// about the past.
func (s *applied) add(on int, prefix netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.present[prefix] = on
	delete(s.errs, prefix)
}

func (s *applied) gone(from int, prefix netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.elsewhere(from, prefix) {
		return
	}
	delete(s.present, prefix)
	delete(s.errs, prefix)
}

func (s *applied) fail(on int, prefix netip.Prefix, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.elsewhere(on, prefix) {
		s.errs[prefix] = err.Error()
	}
}

// elsewhere tells whether an address was put on another interface since.
func (s *applied) elsewhere(than int, prefix netip.Prefix) bool {
	on := s.present[prefix]
	return on != 0 && on != than
}

func (s *applied) isThere(on int, prefix netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.present[prefix] == on
}

func (s *applied) announce(n int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.announcements += uint64(n)
	s.announced = now
}

func (s *applied) putBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returned++
}

func (s *applied) claim(mac string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claimant = mac
}

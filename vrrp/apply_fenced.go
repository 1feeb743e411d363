package vrrp

import (
	"net/netip"
	"slices"
	"time"

	"holdfast/internal/kernel/link"
)

// withdrawFenced makes them unwanted at once, and says what came of it; false:
// the applier has ended, and done is never called.
func (a *applier) withdrawFenced(router string, done func(ok bool)) bool {
	return a.post(errand{kind: errandWithdraw, router: router, done: done})
}

// lease says until when a fenced router's addresses may be here.
func (a *applier) lease(router string, until time.Time) {
	a.post(errand{kind: errandLease, router: router, until: until})
}

// put puts an address on the interface. Of a fenced router it does so only
// under the lease, and lends it: the kernel takes it back by itself.
func (h *holding) put(a *applier, prefix netip.Prefix) error {
	addr := link.Addr{Link: a.link.Index, Prefix: prefix}
	if !h.fenced {
		return a.all.handle.Add(addr)
	}
	return a.all.handle.Lend(addr, h.until.Sub(bootNow()))
}

// lapsed tells whether a fenced router's lease is over. This process may have
// stood still since it looked last: another may have the addresses, and what is
// said of them now would mislead the neighbours.
func (h *holding) lapsed() bool { return h.fenced && !bootNow().Before(h.until) }

// renew keeps a fenced router's addresses for longer.
func (h *holding) renew(a *applier, until time.Time) {
	if h.lapsed() {
		defer h.announce(a) // what was left out
	}
	h.until = until
	for _, prefix := range h.prefixes {
		if !h.applied.isThere(a.link.Index, prefix) {
			continue // work tries again
		}
		if err := h.put(a, prefix); err != nil {
			h.log.Error("an address could not be kept for longer", "address", prefix, "error", err)
			h.applied.fail(a.link.Index, prefix, err)
			h.retry = time.Now().Add(retryEvery)
		}
	}
}

// dropFenced gives up a fenced router's addresses, those too that an earlier
// attempt left, and says whether all are gone.
func (a *applier) dropFenced(o errand, at int) (gone []entry) {
	var meant []entry
	if at >= 0 {
		meant = a.entries(o.router, a.holdings[at].prefixes)
		gone = a.dropAll(at)
	}
	for _, e := range a.all.journal.list() {
		if e.Router == o.router && e.Index == a.link.Index {
			meant = append(meant, e)
		}
	}
	gone = append(gone, a.dropLeft(o.router)...)
	o.done(!slices.ContainsFunc(meant, func(e entry) bool {
		return !slices.ContainsFunc(gone, func(g entry) bool { return compareEntries(e, g) == 0 })
	}))
	return gone
}

package vrrp

import (
	"slices"
	"time"
)

// storeTrack is the name under which the machine tracks the store for a fenced
// router: a node that can't reach it can't have a lease, and must not keep
// others from asking for one.
func storeTrack(router string) string { return "store for " + router }

// withdrawAgain is how soon addresses that could not be removed are tried
// again. Their lease is kept for as long.
const withdrawAgain = 200 * time.Millisecond

// fencedNow tells the fence which routers are its.
func (l *loop) fencedNow() {
	ttls := map[string]time.Duration{}
	for _, in := range l.instances {
		if in.core.Fenced {
			ttls[in.settings.Name] = in.settings.Lease
		}
	}
	l.fence.set(ttls)
}

// named finds the fenced router of a name; nil: it is gone.
func (l *loop) named(router string) *instance {
	for _, in := range l.instances {
		if in.settings.Name == router && in.core.Fenced {
			return in
		}
	}
	return nil
}

// leased takes the word that a router may have its addresses, or for longer.
func (l *loop) leased(router string) {
	in := l.named(router)
	until, ok := l.fence.valid(router)
	if in == nil || !ok || in.state != Active || in.applier == nil {
		return // it was withdrawn since
	}
	first := in.leasedUntil.IsZero()
	in.leasedUntil = until
	l.guard.lease(l.leaseWord(in))
	in.metrics.lease.Set(1)
	if !first {
		in.applier.lease(router, until)
		return
	}
	in.log.Info("the lease is this node's: its addresses are put in place")
	l.tellHolds(in, true)
	in.applier.hold(in)
	in.applier.announce(in)
	l.tellHooks(in, Active)
}

// unleased takes the word that it may not, although it is Active.
func (l *loop) unleased(router, reason string) {
	in := l.named(router)
	if in == nil || in.state != Active { // it was withdrawn since
		return
	}
	in.log.Warn("the lease is lost: its addresses are removed", "reason", reason)
	l.withdrawFenced(in)
	l.tellHooks(in, Fault)
}

// withdrawFenced removes a fenced router's addresses; that they are gone gives
// the lease back, when it is not wanted.
func (l *loop) withdrawFenced(in *instance) {
	in.leasedUntil = time.Time{}
	in.metrics.lease.Set(0)
	l.tellHolds(in, false)
	l.removeFenced(in.settings.Name, in.applier, l.fence.withdrawing(in.settings.Name))
}

// removeFenced has a router's addresses removed by the applier of the interface
// that they are on; nil: they are on none. One that fails is tried again, and the
// lease is kept for as long.
func (l *loop) removeFenced(router string, by *applier, order uint64) {
	if by == nil {
		l.removedFenced(router, order)
		return
	}
	told := by.withdrawFenced(router, func(ok bool) {
		if ok {
			l.mail.post(func() { l.releaseGuard(router) })
			l.fence.removed(router, order)
			return
		}
		l.removeAgain(router, by, order)
	})
	if !told { // it ended, with the last router there
		l.removeByAnother(router, by, order)
	}
}

// removedFenced says that an order to remove a router's addresses is carried out.
func (l *loop) removedFenced(router string, order uint64) {
	l.releaseGuard(router)
	l.fence.removed(router, order)
}

// removeAgain tries again in a moment, unless the addresses are wanted there by
// then: under another lease, or under none since a reload.
func (l *loop) removeAgain(router string, by *applier, order uint64) {
	time.AfterFunc(withdrawAgain, func() {
		l.mail.post(func() {
			at := slices.IndexFunc(l.instances, func(in *instance) bool { return in.settings.Name == router })
			switch {
			case at < 0 || l.instances[at].state != Active:
			case !l.instances[at].core.Fenced:
				l.removedFenced(router, order)
				return
			case !l.instances[at].leasedUntil.IsZero():
				return
			}
			l.removeFenced(router, by, order)
		})
	})
}

// removeByAnother does for an applier that has ended what it was to do. An
// interface that is gone took the addresses with it.
func (l *loop) removeByAnother(router string, ended *applier, order uint64) {
	on, there := l.table.links[ended.link.Index]
	if !there {
		l.removedFenced(router, order)
		return
	}
	fresh, err := l.appliers.get(on)
	if err != nil {
		l.log.Error("addresses that need a lease are not removed yet", "router", router, "interface", on.Name, "error", err)
		l.removeAgain(router, ended, order)
		return
	}
	l.removeFenced(router, fresh, order)
	if l.ports[on.Index] == nil {
		fresh.release()
	}
}

// releaseGuard tells the guard that a router's addresses are gone, unless it
// has a lease again: then it was told of that.
func (l *loop) releaseGuard(router string) {
	if in := l.named(router); in == nil || in.leasedUntil.IsZero() {
		l.guard.unlease(router)
	}
}

// guardGrace is how long after us the guard acts. It is within the margin that
// a lease has (lease.answer), and lets the agent be the one that says why.
const guardGrace = 50 * time.Millisecond

// leaseWord is what the guard must know to remove the addresses in our place.
func (l *loop) leaseWord(in *instance) guardWord {
	word := guardWord{Router: in.settings.Name, Until: sinceBoot(in.leasedUntil) + guardGrace}
	for _, prefix := range in.core.Held {
		word.Fenced = append(word.Fenced, fencedAddress{Index: in.spot.link.Index, Name: in.spot.link.Name, Prefix: prefix})
	}
	return word
}

// tellHooks runs a fenced router's hooks when what it holds has changed: Active
// to them is who has the addresses.
func (l *loop) tellHooks(in *instance, state State) {
	if in.told == state {
		return
	}
	in.told = state
	l.hooks.changed(in, state, l.priority(in, in.index), l.everywhere)
}

// holdFenced asks for the lease of a router that became Active; one that has it
// holds other addresses from now on. Word that it lost it may be on its way: the
// fence knows.
func (l *loop) holdFenced(in *instance) {
	l.fence.want(in.settings.Name, true)
	until, ok := l.fence.valid(in.settings.Name)
	if !ok || in.leasedUntil.IsZero() || in.applier == nil {
		return
	}
	in.leasedUntil = until
	l.guard.lease(l.leaseWord(in))
	in.applier.hold(in)
}

package vrrp

import (
	"time"
)

// A fenced router has its addresses only under a lease: a record in the
// cluster's store, written by compare-and-set, that says who may. The rules,
// which need no clock that two nodes share:
//
//   - the holder counts from before it asked: what it wrote at s is good until
//     s + TTL less a margin, and by then its addresses are gone;
//   - another takes a record that it saw unchanged for twice its TTL. It saw
//     it after it was written, so after s.
//
// lease is one node's part in that, pure: events and a time in, actions out.
// Times are of one clock of this node that never steps and counts while the
// machine sleeps.
type lease struct {
	node, run string        // who we are, and which life of it
	ttl       time.Duration // of what we write

	known  bool // the store was read once
	record leaseRecord
	index  uint64    // of the record; 0: there is none
	seenAt time.Time // when it was first seen so

	wanted    bool      // the router is Active here
	wantedAt  time.Time // since when
	until     time.Time // the addresses may be here; zero: they may not
	present   bool      // they may be there, since they are not known to be gone
	renewedAt time.Time // when what stands was asked for
	asked     leaseRecord
	askedAt   time.Time // of the proposal under way; zero: none
	retryAt   time.Time
	actions   []leaseAction
}

// Shares of the TTL.
const (
	leaseRenewals   = 4 // a renewal is asked for so often in one
	leaseMargin     = 6 // the part by which addresses go before it ends
	leaseRetries    = 12
	leasePatience   = 2 // how many TTLs a record is left alone that does not change
	leaseUnheldTTLs = 4 // after so many without, an Active says that it lacks its lease
)

type leaseEventKind uint8

const (
	leaseTick    leaseEventKind = iota
	leaseWant                   // the router became Active
	leaseUnwant                 // it is no longer
	leaseSeen                   // Record is in the store at Index; 0: there is none
	leaseAnswer                 // the proposal is through: at Index, or 0: it is not, or nobody knows
	leaseRemoved                // the addresses are gone from this node
)

type leaseEvent struct {
	kind   leaseEventKind
	record leaseRecord
	index  uint64
}

type leaseActionKind uint8

const (
	leasePropose leaseActionKind = iota // write Record where the one of Index is; 0: where there is none
	leaseGrant                          // the addresses may be here until Until
	leaseRevoke                         // they may not: away with them
)

type leaseAction struct {
	kind   leaseActionKind
	record leaseRecord
	index  uint64
	until  time.Time
	reason string // of Revoke
}

// step takes one event. The actions are valid until the next call.
func (l *lease) step(e leaseEvent, now time.Time) []leaseAction {
	l.actions = l.actions[:0]
	switch e.kind {
	case leaseWant:
		if !l.wanted {
			l.wanted, l.wantedAt, l.retryAt = true, now, time.Time{}
		}
	case leaseUnwant:
		l.wanted, l.until = false, time.Time{}
	case leaseSeen:
		l.see(e.record, e.index, now)
	case leaseAnswer:
		l.answer(e.index, now)
	case leaseRemoved:
		l.present = l.held() // what was granted since is there again
	case leaseTick:
	}
	l.expire(now)
	l.ask(now)
	return l.actions
}

// held tells whether the addresses may be here.
func (l *lease) held() bool { return !l.until.IsZero() }

// mine tells whether the record is this life's.
func (l *lease) mine() bool { return l.index != 0 && l.record.Run == l.run && !l.record.Free }

func (l *lease) see(record leaseRecord, index uint64, now time.Time) {
	if l.known && index == l.index {
		return
	}
	l.known, l.record, l.index, l.seenAt = true, record, index, now
	if l.held() && !l.mine() {
		l.revoke("the store's record is no longer ours")
	}
}

// answer takes the outcome of what was asked. Who was refused has read what
// stands there now before (leaseSeen).
func (l *lease) answer(index uint64, now time.Time) {
	asked, at := l.asked, l.askedAt
	l.askedAt = time.Time{}
	if index == 0 {
		l.retryAt = now.Add(l.ttl / leaseRetries)
		return
	}
	if index < l.index && l.record.Run != l.run {
		return // it was overwritten already
	}
	l.known, l.record, l.index, l.seenAt = true, asked, max(index, l.index), now
	if asked.Free {
		return
	}
	l.renewedAt = at
	if end := at.Add(l.ttl - l.ttl/leaseMargin); l.wanted && now.Before(end) {
		l.until, l.present = end, true
		l.give(leaseAction{kind: leaseGrant, until: end})
	}
}

func (l *lease) expire(now time.Time) {
	if l.held() && !now.Before(l.until) {
		l.revoke("it could not be renewed in time")
	}
}

func (l *lease) revoke(reason string) {
	l.until = time.Time{}
	l.give(leaseAction{kind: leaseRevoke, reason: reason})
}

func (l *lease) give(a leaseAction) { l.actions = append(l.actions, a) }

// ask proposes what is due. Addresses that could not be removed are kept under
// the lease, wanted or not.
func (l *lease) ask(now time.Time) {
	at, due := l.askAt()
	if !due || now.Before(at) {
		return
	}
	next := leaseRecord{Node: l.node, Run: l.run, TTL: l.ttl, Count: l.record.Count + 1, Free: !l.wanted && !l.present}
	l.asked, l.askedAt = next, now
	l.give(leaseAction{kind: leasePropose, record: next, index: l.index})
}

// askAt is when the next proposal is due; false: none is.
func (l *lease) askAt() (at time.Time, due bool) {
	switch {
	case !l.known || !l.askedAt.IsZero():
		return at, false
	case l.mine() && (l.wanted || l.present):
		at = l.renewedAt.Add(l.ttl / leaseRenewals)
		if l.wanted && !l.held() {
			at = l.wantedAt // it is ours, and nothing is here
		}
	case l.mine():
		at = l.renewedAt // release
	case !l.wanted:
		return at, false
	default:
		at = l.freeAt()
	}
	if l.retryAt.After(at) {
		at = l.retryAt
	}
	return at, true
}

// freeAt is when somebody else's record may be taken.
func (l *lease) freeAt() time.Time {
	if l.index == 0 || l.record.Free {
		return l.wantedAt
	}
	return l.seenAt.Add(leasePatience * l.record.TTL)
}

// next is when Tick is due; false: never.
func (l *lease) next() (at time.Time, ok bool) {
	at, ok = l.askAt()
	if l.held() && (!ok || l.until.Before(at)) {
		return l.until, true
	}
	return at, ok
}

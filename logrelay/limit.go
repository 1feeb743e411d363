package logrelay

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/expr-lang/expr/vm"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// limit is how many lines of one kind a rule lets on in each window of time.
// It is about outputs: what is over it was taken, stored and acknowledged.
type limit struct {
	per   *vm.Program // says which kind a line is
	lines int
	every time.Duration
}

// window counts the lines of a limit. Its clock is the lines' own, of their
// receipt: an output that was down for a day then gets of that day what it
// would have got. Windows begin at multiples of their length.
type window struct {
	number int64 // of the window, from 1970 on
	seed   maphash.Seed
	taken  map[uint64]int // by the hash of the kind
	others int            // of kinds that came after there were too many
}

// maxKinds bounds the kinds that a window counts one by one: a sender can
// invent as many as it likes. The others share one limit.
const maxKinds = 20_000

// take tells whether a line is within the limit, and counts it.
func (w *window) take(kind string, received int64, l *limit) bool {
	number := received / int64(l.every)
	// Lines come a little out of order: one of the window before counts with
	// this. One that is older is of a clock that was set back.
	if w.taken == nil || number > w.number || number < w.number-1 {
		if w.taken == nil {
			w.taken, w.seed = map[uint64]int{}, maphash.MakeSeed()
		}
		clear(w.taken)
		w.number, w.others = number, 0
	}
	key := maphash.String(w.seed, kind)
	count, known := w.taken[key]
	if !known && len(w.taken) >= maxKinds {
		w.others++
		return w.others <= l.lines
	}
	if count >= l.lines {
		return false
	}
	w.taken[key] = count + 1
	return true
}

// within tells whether a line is within the limit of the rule at i. A kind
// that can't be told has none.
func (r *rules) within(i int, l *line) bool {
	limit := r.list[i].limit
	kind, ok := r.text(limit.per)
	if !ok || r.boundless {
		return true
	}
	if r.windows == nil {
		r.windows = make([][2]window, len(r.list))
	}
	// Lines of another node come late, and in an order of their own: they are
	// counted apart, and so as that node counts them.
	w := &r.windows[i][0]
	if l.record.Input&viaOther != 0 {
		w = &r.windows[i][1]
	}
	if w.take(kind, l.record.Time, limit) {
		return true
	}
	if r.over == nil {
		r.over = map[overKey]*over{}
	}
	at := overKey{l.host, i}
	o := r.over[at]
	if o == nil {
		o = &over{overKey: at, limit: limit, first: l.received}
		r.over[at] = o
	}
	o.lines++
	o.last = l.received
	return false
}

// over is lines of a host that are over a limit and were left out.
type over struct {
	overKey
	limit       *limit
	lines       int
	first, last time.Time // of their receipt
}

type overKey struct {
	host string
	rule int // its place in the cluster file
}

// leftOut is what was left out since it was asked last, by host and rule.
func (r *rules) leftOut() []*over {
	if r == nil || len(r.over) == 0 {
		return nil
	}
	list := make([]*over, 0, len(r.over))
	for _, o := range r.over {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b *over) int {
		return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(a.rule, b.rule))
	})
	clear(r.over)
	return list
}

// announce makes the line one that says what was left out.
func (l *line) announce(o *over) {
	l.Message = syslog.Message{
		Priority: announcePriority, Host: []byte(o.host), App: []byte(announceApp),
		Text: fmt.Appendf(nil, "%d lines left out, received from %s to %s: more than %d in %v (logs.rules[%d].limit)",
			o.lines, o.first.Format(time.TimeOnly), o.last.Format(time.TimeOnly), o.limit.lines, o.limit.every, o.rule),
	}
	l.record, l.received, l.host = journal.Record{Time: o.last.UnixNano()}, o.last, o.host
	l.number, l.hides, l.lost = 0, hidesUnknown, ""
}

// announceApp is the program that says so.
const announceApp = "holdfast"

// announcePriority is syslog.warning (RFC 5424 §6.2.1).
const announcePriority = 5<<3 | 4

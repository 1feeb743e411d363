package wire

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Router is one virtual router of a network. The same VRID in the other
// family is another.
type Router struct {
	VRID     uint8
	IPv6     bool
	Interval time.Duration // that its Active advertises at
}

// Is says whether an event is an advert of the router.
func (r Router) Is(e Event) bool {
	return e.Kind == Advert && e.VRID == r.VRID && e.Src.Is6() == r.IPv6
}

// Span is a time in which one host does something again and again.
type Span struct {
	By         MAC
	Start, End time.Time // of the first and the last time
	Count      int

	times []time.Time
}

// within counts the times after from, up to to.
func (s Span) within(from, to time.Time) (n int) {
	for _, at := range s.times {
		if at.After(from) && !at.After(to) {
			n++
		}
	}
	return n
}

func (s Span) String() string {
	return fmt.Sprintf("%s from %s for %s (%d)", s.By, s.Start.Format("05.000000"), s.End.Sub(s.Start), s.Count)
}

// patience is how many intervals an Active may be silent and still be counted
// as the same: less than the three after which a Backup may take over.
const patience = 2.5

// Actives lists when who advertised the router: from a host's first advert to
// its last, or to the one with priority 0. The spans are in the order of their
// starts.
func Actives(events []Event, r Router) []Span {
	b := spanBuilder{gap: time.Duration(patience * float64(r.Interval))}
	for _, e := range events {
		if !r.Is(e) {
			continue
		}
		if e.Priority == 0 {
			b.end(e.From, e.At)
			continue
		}
		b.handOver(e.From, e.At, r.Interval+r.Interval/4)
		b.add(e.From, e.At)
	}
	return b.spans()
}

// handOver ends the span of a host that was silent for longer than an Active is
// while another advertised: it had given way, and came back. That may be soon:
// one that hears a priority 0 takes over within its Skew_Time, however short
// the other was Active.
func (b *spanBuilder) handOver(by MAC, at time.Time, silent time.Duration) {
	s := b.open[by]
	if s == nil || at.Sub(s.End) <= silent {
		return
	}
	for other, o := range b.open {
		if other != by && o.End.After(s.End) {
			b.close(by)
			return
		}
	}
	for _, o := range b.done {
		if o.By != by && o.End.After(s.End) {
			b.close(by)
			return
		}
	}
}

// Answering lists when who said that it has the address, to an asker or to
// all; a silence longer than gap ends a span.
func Answering(events []Event, addr netip.Addr, gap time.Duration) []Span {
	b := spanBuilder{gap: gap}
	for _, e := range events {
		if e.Kind != Advert && e.Addr == addr {
			b.add(e.From, e.At)
		}
	}
	return b.spans()
}

type spanBuilder struct {
	gap  time.Duration
	open map[MAC]*Span
	done []Span
}

func (b *spanBuilder) add(by MAC, at time.Time) {
	if s := b.open[by]; s != nil && at.Sub(s.End) <= b.gap {
		s.End = at
		s.Count++
		s.times = append(s.times, at)
		return
	}
	b.close(by)
	if b.open == nil {
		b.open = make(map[MAC]*Span)
	}
	b.open[by] = &Span{By: by, Start: at, End: at, Count: 1, times: []time.Time{at}}
}

// end ends a span at a time, when one is under way.
func (b *spanBuilder) end(by MAC, at time.Time) {
	if s := b.open[by]; s != nil && at.Sub(s.End) <= b.gap {
		s.End = at
	}
	b.close(by)
}

func (b *spanBuilder) close(by MAC) {
	if s := b.open[by]; s != nil {
		b.done = append(b.done, *s)
		delete(b.open, by)
	}
}

func (b *spanBuilder) spans() []Span {
	for by := range b.open {
		b.done = append(b.done, *b.open[by])
	}
	b.open = nil
	slices.SortFunc(b.done, func(x, y Span) int {
		return cmp.Or(x.Start.Compare(y.Start), slices.Compare(x.By[:], y.By[:]))
	})
	return b.done
}

// Window is a time in which a rule does not hold, such as a partition.
type Window struct{ From, To time.Time }

// Merge joins windows that lie over each other or touch, in the order of time.
func Merge(windows ...Window) (list []Window) {
	windows = slices.Clone(windows)
	slices.SortFunc(windows, func(a, b Window) int { return a.From.Compare(b.From) })
	for _, w := range windows {
		if last := len(list) - 1; last >= 0 && !w.From.After(list[last].To) {
			list[last].To = later(list[last].To, w.To)
			continue
		}
		list = append(list, w)
	}
	return list
}

// Overlap is a time in which two hosts did what one alone may do.
type Overlap struct {
	A, B Span          // in the order of their starts
	For  time.Duration // without what was excused
	// Times is how often the one that did it less often did it after the other
	// had begun: of two Actives, how many adverts it took to give way. One that
	// was late is one still.
	Times int
}

func (o Overlap) String() string {
	return fmt.Sprintf("for %s, and %d times, both %s and %s", o.For, o.Times, o.A, o.B)
}

// Overlaps lists the pairs of spans of different hosts that lie over each
// other for longer than allowed. What lies in an excused window does not
// count; the windows must not overlap (see Merge).
func Overlaps(spans []Span, allowed time.Duration, excused ...Window) []Overlap {
	var found []Overlap
	for i, a := range spans {
		for _, b := range spans[i+1:] {
			if a.By == b.By {
				continue
			}
			w := Window{later(a.Start, b.Start), earlier(a.End, b.End)}
			length := w.To.Sub(w.From)
			for _, e := range excused {
				length -= max(0, earlier(w.To, e.To).Sub(later(w.From, e.From)))
			}
			if length > allowed {
				found = append(found, Overlap{a, b, length, min(a.within(w.From, w.To), 1+b.within(w.From, w.To))})
			}
		}
	}
	return found
}

// Strays lists the answers and announcements for an address that came from a
// host while it was not Active: before its first advert, or later than slack
// after its last one.
func Strays(events []Event, actives []Span, addr netip.Addr, slack time.Duration) []Event {
	var found []Event
	for _, e := range events {
		if e.Kind == Advert || e.Addr != addr {
			continue
		}
		if !slices.ContainsFunc(actives, func(s Span) bool {
			return s.By == e.From && !e.At.Before(s.Start) && e.At.Sub(s.End) <= slack
		}) {
			found = append(found, e)
		}
	}
	return found
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Package stall measures when the machine itself stood still, so that a test of
// what the product promises can leave that out: its processors were with others,
// it was stopped as a whole, or its disk did not answer.
package stall

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/lab"
)

const (
	// processorEvery is how long a watch of a processor sleeps, diskEvery how
	// long one of a disk does between two writes.
	processorEvery = 10 * time.Millisecond
	diskEvery      = 50 * time.Millisecond

	// least is what a sleep may take longer before it counts: a machine that only
	// is busy lets a sleeper in sooner. diskLeast is what a write may take: a slow
	// disk turns a few times meanwhile.
	least     = 20 * time.Millisecond
	diskLeast = 100 * time.Millisecond
)

// Span is a time in which something stood still. It has the whole sleep that
// ended late: nobody can tell when in it the machine stopped. So it is up to
// 10 ms too long, never too short.
type Span struct{ From, To time.Time }

// Watch records stalls from Start to Close. Its methods may be called from any
// goroutine.
type Watch struct {
	stop chan struct{}
	wait sync.WaitGroup

	mu      sync.Mutex
	sources []*source
	closed  bool
	err     error
}

// source is one processor or disk.
type source struct {
	what  string
	late  time.Duration // a turn that takes so long is a stall
	began time.Time     // of the turn under way
	spans []Span        // in order; those that touch are one
	turns []Span        // that stalled, in order, each by itself
}

// Start watches every processor that this process may use, each by a thread that
// stays there, and, where dir is not "", the disk that the directory is on, by
// small writes to a file there. An error says what can't be watched.
func Start(dir string) (*Watch, error) {
	w := &Watch{stop: make(chan struct{})}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("stall: which processors may be used: %w", err)
	}
	var file *os.File
	if dir != "" {
		var err error
		if file, err = os.Create(filepath.Join(dir, "stall")); err != nil {
			return nil, fmt.Errorf("stall: a file to write to: %w", err)
		}
	}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			s := w.add(fmt.Sprintf("processor %d", cpu), processorEvery+least)
			w.wait.Go(func() { w.processor(s, cpu) })
		}
	}
	if file != nil {
		s := w.add("the disk of "+dir, diskLeast)
		w.wait.Go(func() { w.disk(s, file) })
	}
	return w, nil
}

// Test is a watch for one test, which ends it.
func Test(t lab.TB, dir string) *Watch {
	t.Helper()
	w, err := Start(dir)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return w
}

// Close ends the watch; what it recorded stays. It returns what kept it from
// watching.
func (w *Watch) Close() error {
	w.mu.Lock()
	again := w.closed
	w.closed = true
	w.mu.Unlock()
	if !again {
		close(w.stop)
	}
	w.wait.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Watch) add(what string, late time.Duration) *source {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &source{what: what, late: late}
	w.sources = append(w.sources, s)
	return s
}

func (w *Watch) fail(s *source, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, fmt.Errorf("stall: watch %s: %w", s.what, err))
}

// processor sleeps on one processor again and again.
func (w *Watch) processor(s *source, cpu int) {
	// The thread ends with this goroutine, so that nothing else stays there.
	runtime.LockOSThread()
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		w.fail(s, err)
		return
	}
	timer := time.NewTimer(processorEvery)
	defer timer.Stop()
	for w.begin(s, time.Now()) {
		timer.Reset(processorEvery)
		select {
		case <-timer.C:
		case <-w.stop:
		}
		w.end(s, time.Now())
	}
}

// disk writes a block and syncs it, again and again.
func (w *Watch) disk(s *source, file *os.File) {
	defer file.Close()
	block := make([]byte, 4096)
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for w.begin(s, time.Now()) {
		_, err := file.WriteAt(block, 0)
		if err == nil {
			err = unix.Fdatasync(int(file.Fd()))
		}
		w.end(s, time.Now())
		if err != nil {
			w.fail(s, err)
			return
		}
		select {
		case <-tick.C:
		case <-w.stop:
		}
	}
}

// begin begins a turn, unless the watch is to end.
func (w *Watch) begin(s *source, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.began = at
	if w.closed {
		s.began = time.Time{}
	}
	return !w.closed
}

func (w *Watch) end(s *source, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	span, stalled := s.turn(at)
	s.began = time.Time{}
	if !stalled {
		return
	}
	s.turns = append(s.turns, span)
	if last := len(s.spans) - 1; last >= 0 && span.From.Sub(s.spans[last].To) < processorEvery {
		s.spans[last].To = span.To
		return
	}
	s.spans = append(s.spans, span)
}

// turn is the turn under way as a span, and whether it is a stall by a time.
func (s *source) turn(at time.Time) (Span, bool) {
	return Span{s.began, at}, !s.began.IsZero() && at.Sub(s.began) >= s.late
}

// Spans lists when something stood still between two times, in order, and none
// over another. What stands still yet is among them.
func (w *Watch) Spans(from, to time.Time) []Span {
	w.mu.Lock()
	var all []Span
	now := time.Now()
	for _, s := range w.sources {
		all = append(all, s.spans...)
		if span, stalled := s.turn(now); stalled {
			all = append(all, span)
		}
	}
	w.mu.Unlock()
	return merge(all, from, to)
}

// merge cuts spans to a time and joins those that touch.
func merge(all []Span, from, to time.Time) (list []Span) {
	slices.SortFunc(all, func(a, b Span) int { return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To)) })
	for _, s := range all {
		if s.From.Before(from) {
			s.From = from
		}
		if s.To.After(to) {
			s.To = to
		}
		if !s.From.Before(s.To) {
			continue
		}
		if last := len(list) - 1; last >= 0 && !s.From.After(list[last].To) {
			if s.To.After(list[last].To) {
				list[last].To = s.To
			}
			continue
		}
		list = append(list, s)
	}
	return list
}

// Within is how long something stood still between two times.
func (w *Watch) Within(from, to time.Time) (sum time.Duration) {
	for _, s := range w.Spans(from, to) {
		sum += s.To.Sub(s.From)
	}
	return sum
}

// Longest is the longest that one processor or disk stood still at a stretch between
// two times: a single turn of its watch. Turns that end late one after another are a
// processor that is busy and yet lets others in between, and those of several are
// several, though each of both is one Span.
func (w *Watch) Longest(from, to time.Time) (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for _, s := range w.sources {
		turns := s.turns
		if span, stalled := s.turn(now); stalled {
			turns = append(slices.Clip(turns), span)
		}
		for _, t := range turns {
			for _, part := range merge([]Span{t}, from, to) {
				longest = max(longest, part.To.Sub(part.From))
			}
		}
	}
	return longest
}

// Took is how long something took, without the time that the machine stood
// still meanwhile.
func (w *Watch) Took(from, to time.Time) time.Duration { return to.Sub(from) - w.Within(from, to) }

// Judge fails the test when something took longer than its bound, without the
// time that the machine stood still, and says so when it is that which saved it.
func (w *Watch) Judge(t lab.TB, what string, bound time.Duration, from, to time.Time) {
	t.Helper()
	if took := to.Sub(from); took > bound {
		tell := t.Logf
		if w.Took(from, to) > bound {
			tell = t.Errorf
		}
		tell("%s took %v, want at most %v; the machine stood still for %v of that", what, took, bound, w.Within(from, to))
	}
}

// Repeat does a round that returns when it measured, and what it missed. One that
// missed something while the machine stood still for at least that long is done
// again, which is logged, but no more than times rounds in all; any other miss
// fails the test.
func (w *Watch) Repeat(t lab.TB, what string, times int, stalled time.Duration, round func() (from, to time.Time, missed error)) {
	t.Helper()
	for n := 1; ; n++ {
		from, to, missed := round()
		if missed == nil {
			return
		}
		stood := w.Within(from, to)
		if n >= times || stood < stalled {
			t.Errorf("%s: %v; the machine stood still for %v meanwhile", what, missed, stood)
			return
		}
		t.Logf("%s is done again: %v, and the machine stood still for %v meanwhile", what, missed, stood)
	}
}

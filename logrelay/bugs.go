package logrelay

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
)

const (
	conditionFailed = "logs.line-failed"
	failedFor       = time.Hour   // after the last for which the condition stands
	failedAgain     = time.Minute // between two stacks in the log, and two texts of the condition
)

// errBug: a panic of ours.
var errBug = errors.New("logrelay: a bug, please report it")

// bugs tell of panics over one line, datagram or connection, which cost no
// other: in a goroutine of ours one would end the process, and over a line that
// outputs read once more at each start, each of the next ones. Its methods may be
// called from any goroutine; nil tells nobody.
type bugs struct {
	log    *slog.Logger
	board  *health.Board
	inputs [viaLast + 1]prometheus.Counter

	mu          sync.Mutex
	count, said int       // panics since the condition was clear, and of these in its text
	untold      int       // since the last line of the log
	since, last time.Time // of the first, and of the last
	told        time.Time // when the log last had a stack
	raised      time.Time // when the condition last had a text
	text        string    // of the last
}

// caught hears of a panic where it was recovered, logs its stack if that is due, and
// raises the condition. where is such as "output files". It returns what it was, in
// words that have nothing of a line in them.
func (b *bugs) caught(panicked any, where string, fields ...any) (why string) {
	why = b.logged(panicked, where, fields...)
	if b == nil {
		return why
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count == 0 {
		b.since = now
	}
	b.count++
	b.last, b.text = now, where+": "+why
	if b.said == 0 || now.Sub(b.raised) >= failedAgain {
		b.raise(now)
	}
	return why
}

// logged is caught of what nobody lacks a line for, as of a query: who asks again has
// it panic again, and no condition counts that.
func (b *bugs) logged(panicked any, where string, fields ...any) (why string) {
	why = whyOf(panicked)
	if b == nil {
		return why
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.untold++
	if !b.told.IsZero() && now.Sub(b.told) < failedAgain {
		return why
	}
	b.log.Error("a line could not be handled; the others are: this is a bug, please report it",
		append([]any{"where", where, "panics", b.untold, "panic", why, "stack", string(debug.Stack())}, fields...)...)
	b.told, b.untold = now, 0
	return why
}

// whyOf is what a panic says of itself. What the runtime says has numbers and
// names of types in it. Anything else may have the line in it, or a part of it
// that no pattern of secrets fits: of that only the type is told.
func whyOf(panicked any) string {
	if err, ok := panicked.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("a panic with a %T", panicked)
}

// raise sets the condition. The caller holds mu.
func (b *bugs) raise(now time.Time) {
	b.said, b.raised = b.count, now
	b.board.Raise(conditionFailed, health.Error, fmt.Sprintf(
		"%d times since %s a line, a datagram or a connection could not be handled by an input or an output (each output counts for itself); the others are, and in the place of each line stands one that names its number. The last: %s. This is a bug: please report it with the stack in the log",
		b.count, b.since.Format(time.RFC3339), b.text))
}

// expire ends the condition an hour after the last, and has its text say how many
// there were.
func (b *bugs) expire(now time.Time) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.count == 0:
	case now.Sub(b.last) >= failedFor:
		b.count, b.said = 0, 0
		b.board.Clear(conditionFailed)
	case b.count > b.said && now.Sub(b.raised) >= failedAgain:
		b.raise(now)
	}
}

// input is caught, of what came by an input; its error ends the connection.
func (b *bugs) input(via uint8, panicked any, fields ...any) error {
	if b != nil {
		b.inputs[via].Inc()
	}
	return fmt.Errorf("%w: %s", errBug, b.caught(panicked, "input "+inputName(via), fields...))
}

// guard calls what takes apart what came by an input, and makes an error of its
// panic. What holds a lock that is not deferred to be released, or waits for the
// disk, has no place in it.
func (s *Server) guard(via uint8, f func() error, fields ...any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.bugs.input(via, p, fields...)
		}
	}()
	return f()
}

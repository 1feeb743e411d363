package ntpproxy

import (
	"context"
	"time"

	"holdfast/internal/health"
)

const (
	// After the kernel refused, or another daemon was seen to steer, it is tried
	// again after retryFirst, then after twice as long, up to retryLast. Each
	// time all sources are asked in a burst, who never did us any harm.
	retryFirst = time.Second
	retryLast  = 5 * time.Minute
	// retrySteady is how long it went well until the next failure is a first one.
	retrySteady = 10 * time.Minute
	// catalogWait is how long after the start the catalog is waited for while
	// nothing is known of it: what lives here and forbids steps stands there,
	// and the first corrections are the ones that step.
	catalogWait = 15 * time.Second
)

// retry is how long is waited until steering is tried again. It is pure.
type retry struct {
	last    time.Duration
	failing bool // the last attempt failed, and none has got as far as the kernel since
}

// after is how long is waited after an attempt that failed after it went well
// for a time.
func (r *retry) after(well time.Duration) time.Duration {
	r.failing = true
	if r.last == 0 || well >= retrySteady {
		r.last = retryFirst
	} else {
		r.last = min(2*r.last, retryLast)
	}
	return r.last
}

// pause waits; false: ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// steer disciplines the clock until ctx ends, while the file says so and nobody
// else does.
func (s *Server) steer(ctx context.Context) {
	defer s.board.Clear(conditionRefused)
	var again retry
	said := ""
	for wait := time.Duration(0); s.pause(ctx, wait); {
		wait = watchEvery
		set := s.settings.Load()
		if !set.steers() {
			s.board.Clear(conditionRefused)
			said = ""
			continue
		}
		if !s.catalogKnown() {
			wait = watchEvery / 4
			continue
		}
		why, ours := s.another(), false
		if why == "" {
			why, wait = s.try(ctx, set, &again)
			ours = true
		} else {
			again.failing = false
		}
		if ctx.Err() != nil || why == "" { // "": the file changed
			continue
		}
		if why != said {
			s.log.Warn("not steering the clock", "why", why, "again_in", wait)
			said = why
		}
		if ours || set.keep == keepDiscipline {
			s.board.Raise(conditionRefused, health.Error, "this node does not steer its clock: "+why)
		} else {
			s.board.Clear(conditionRefused) // with `auto` it is in order that another does
		}
	}
}

// try steers until it can't, and says why, and how long to wait then. Nobody is
// asked anything before it is known that the kernel lets us.
func (s *Server) try(ctx context.Context, set *settings, again *retry) (why string, wait time.Duration) {
	if err := s.permitted(); err != nil {
		return err.Error(), again.after(0)
	}
	if !again.failing { // else it stands until the kernel takes something (apply): it is no news each time
		s.board.Clear(conditionRefused)
	}
	began := s.elapsed()
	if why = s.keep(ctx, set); why == "" {
		return "", watchEvery
	}
	return why, again.after(s.elapsed() - began)
}

// another tells who else steers the clock, "" for nobody.
func (s *Server) another() string {
	if _, err := askChrony(s.chrony, 1); err == nil {
		return "chronyd does; stop it, or write `keep: serve`"
	}
	k, err := s.kernel()
	if err != nil {
		return err.Error()
	}
	if k.Synchronised && !s.marked(k) {
		return "the kernel says that another daemon did so lately; stop it, and wait until the kernel calls the clock unsynchronised, or restart the machine"
	}
	return ""
}

// catalogKnown tells whether what forbids steps can be asked for. A replica that
// is empty has not been filled yet, or belongs to a cluster that is being
// formed: after a while the clock counts for more.
func (s *Server) catalogKnown() bool {
	return s.state == nil || s.state.Snapshot().Index() != 0 || s.elapsed() >= s.catalogWait
}

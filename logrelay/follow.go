package logrelay

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// followPatience is how long a line waits for a node that does not say whether
// it has an older one: one that lost its power says nothing at all, and one
// whose clock is behind never comes that far.
const followPatience = 2 * time.Second

// followTell is how often at most Follow tells of the same node.
const followTell = time.Minute

// Follow is Merge for answers that go on: no node can hold up the lines of the
// others for more than two seconds. lag is then told which one no line waits for
// until it has caught up, and of one whose answer broke off; what such a node
// sends stands where it comes. lag is called by the goroutine that calls emit.
func Follow(ctx context.Context, from []Stream, lag func(node string, why error), emit func(node string, e *Entry) error) (broken map[string]error, err error) {
	return merge(ctx, from, &follower{lag: lag, patience: followPatience}, emit)
}

// follower decides which streams are not waited for. nil waits for all.
type follower struct {
	lag      func(node string, why error)
	patience time.Duration
	blocked  time.Time // since when the oldest line waits; zero: none does
	newest   time.Time // of the lines that were emitted
}

// look says when to look again though no stream has said anything: zero: never.
// Lines that have waited long enough wait no more.
func (f *follower) look(list []*stream, now time.Time) (again time.Time) {
	if f == nil {
		return time.Time{}
	}
	for _, s := range list {
		if s.ended && s.failed != nil && !s.broke {
			s.broke = true
			f.lag(s.node, s.failed)
		}
	}
	waiting := blocking(list)
	if len(waiting) == 0 {
		f.blocked = time.Time{}
		return time.Time{}
	}
	if f.blocked.IsZero() {
		f.blocked = now
	}
	for _, s := range waiting {
		until := f.blocked.Add(f.patience)
		if busy := s.busy.Add(f.patience); busy.After(until) {
			until = busy
		}
		if now.Before(until) {
			if again.IsZero() || until.Before(again) {
				again = until
			}
			continue
		}
		s.late = true
		if s.told.IsZero() || now.Sub(s.told) >= followTell {
			s.told = now
			f.lag(s.node, s.why(f.patience))
		}
	}
	return again
}

// emitted notes a line that was given out: the next begins to wait anew, and who
// has come as far is waited for again.
func (f *follower) emitted(list []*stream, e *Entry) {
	if f == nil {
		return
	}
	f.blocked = time.Time{}
	if e.Time.After(f.newest) {
		f.newest = e.Time
	}
	f.caughtUp(list)
}

// caughtUp ends the lateness of those that have come as far as the others, and
// so hold up nothing that is here.
func (f *follower) caughtUp(list []*stream) {
	if f == nil {
		return
	}
	far := f.newest
	if least := oldest(list); least != nil && least.head.Time.After(far) {
		far = least.head.Time
	}
	for _, s := range list {
		if s.late && (!s.upto.Before(far) || s.head != nil && !s.head.Time.Before(far)) {
			s.late = false
		}
	}
}

// why says what is wrong with a stream that is late.
func (s *stream) why(patience time.Duration) error {
	if s.upto.IsZero() {
		return fmt.Errorf("it has sent nothing for %v; lines are shown without it, and its own where they come", patience)
	}
	return fmt.Errorf("it is more than %v behind, or its clock is: it says that it has come to %s; lines are shown without it, and its own where they come",
		patience, s.upto.Format(time.RFC3339))
}

// errBroke is the answer of a node that ended before it said that it was whole.
var errBroke = errors.New("the answer broke off: lines are missing")

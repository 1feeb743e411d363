package check

import (
	"fmt"
	"math"
	"time"

	"holdfast/internal/state"
)

// Flap damping, as RFC 2439 has it for routes: each fall costs a point, points
// halve in the definition's time, and a check with dampHold of them is held
// critical until they have faded to dampFree. It delays good news alone; bad
// news is never delayed.
const (
	dampHold      = 3.0
	dampFree      = 1.0
	dampForgotten = 0.25
	dampMost      = 8.0 // so that it is free after three halvings at most

	minDamp = time.Second
	maxDamp = 24 * time.Hour
)

// damper counts how often a check fell.
type damper struct {
	half   time.Duration // 0: no damping
	points float64
	at     time.Time // when points were right
	falls  int       // since it was last free of points
	held   bool
}

// fade brings the points to now. A clock that was set back fades nothing.
func (d *damper) fade(now time.Time) {
	if passed := now.Sub(d.at); passed > 0 && d.points > 0 {
		d.points *= math.Exp2(-float64(passed) / float64(d.half))
	}
	d.at = now
}

// step takes what the check would be without damping, and what it was; it
// returns what it is.
func (d *damper) step(was, status state.Status, output string, now time.Time) (state.Status, string) {
	if d.half == 0 {
		return status, output
	}
	d.fade(now)
	if status == state.Critical && was != state.Critical {
		d.points = min(d.points+1, dampMost)
		d.falls++
	}
	switch {
	case d.points >= dampHold:
		d.held = true
	case d.points <= dampFree:
		d.held = false
	}
	if d.points < dampForgotten {
		d.falls = 0
	}
	if d.held && status != state.Critical {
		return state.Critical, fmt.Sprintf("held: it fell %d times in short; good again when it stays good: %s", d.falls, output)
	}
	return status, output
}

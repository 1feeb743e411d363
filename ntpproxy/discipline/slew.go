package discipline

import (
	"math"
	"time"
)

// The kernel slews in two ways, both of which end by themselves, whatever
// becomes of who asked: at most slowSlew (adjtime's), and by a quarter of what
// is left each second, in its phase-locked loop with the frequency held. A
// second begins when its clock says so, and what it works off until the next it
// has set aside at its beginning (second_overflow() of the kernel's ntp.c).
const (
	slowSlew  = 500e-6 // MAX_TICKADJ, in seconds a second
	fastShare = 4.0    // 2^SHIFT_PLL, with the time constant 0
	maxFast   = 0.5    // MAXPHASE, in seconds
	// overdrive is how much more than the offset the fast way is told, and told
	// less again half a second into each second: half of the offset is gone then
	// each second in place of a quarter. Whoever dies in between leaves a clock
	// that ends as far off on the other side as it was, at most.
	overdrive = 2.0
	// An offset is worked off fast only while it is more than slowSlew does in
	// a second, and beyond sure standard errors of what is known of it: noise is
	// not to be chased.
	sure = 3.0
)

// Bounds of Config.Slew, in seconds a second.
const (
	MinSlew     = slowSlew
	MaxSlew     = 0.1 // of maxFast, fastShare a second: 0.125
	DefaultSlew = 10e-3
)

// pending is what the kernel was told to work off and has yet to, in seconds,
// by the clock's own seconds. After another set the clock it is wrong for a
// second, and the next look at the offset puts it right.
type pending struct {
	second     int64   // of the clock, that it is in
	fast, slow float64 // not begun
	running    float64 // is worked off from the beginning of this second to its end
}

// pass brings it to where the clock is.
func (p *pending) pass(clock time.Time) {
	n := clock.Unix() - p.second
	p.second += n
	if n > quiet {
		p.fast, p.slow, p.running = 0, 0, 0
		return
	}
	for range n { // none when the clock went back, over a leap second
		share := p.fast / fastShare
		slow := math.Copysign(min(math.Abs(p.slow), slowSlew), p.slow)
		p.fast, p.slow, p.running = p.fast-share, p.slow-slow, share+slow
	}
}

// quiet is how many seconds without a word from us the kernel is done after.
const quiet = 100

// left is what is still to come of what is being worked off.
func (p *pending) left(clock time.Time) float64 {
	return p.running * (1 - float64(clock.Nanosecond())/1e9)
}

// slew says what the kernel is to be told so that an offset goes away, beside
// what it is about: the slow and the fast way. drive is how many times the
// offset the fast one is told.
func (c *Core) slew(now Reading, offset time.Duration, drive float64) (slow, fast time.Duration) {
	c.pending.pass(now.Clock)
	rest := offset.Seconds() - c.pending.left(now.Clock)
	c.fast = !c.healing && c.config.Slew > slowSlew &&
		math.Abs(rest) > max(slowSlew, sure*c.target.errorAt(now.Raw))
	if !c.fast {
		c.pending.fast, c.pending.slow = 0, rest
		return seconds(rest), 0
	}
	told := math.Copysign(min(drive*math.Abs(rest), fastShare*c.config.Slew, maxFast), rest)
	c.pending.fast, c.pending.slow = told, 0
	c.told = half(now.Clock)
	return 0, seconds(told)
}

// half counts the middles of the clock's seconds. There the kernel is told:
// far from where one second's work ends and the next one's begins.
func half(clock time.Time) int64 { return clock.Add(-time.Second / 2).Unix() }

// slewOn goes on with a fast slew, when no source said anything new.
func (c *Core) slewOn(now Reading, a *Actions) {
	if !c.fast || c.at == 0 {
		return
	}
	if c.offset(now).Abs() > c.config.Panic {
		c.fast = false // somebody set the clock; the next sample says so
		return
	}
	if a.Adjust == nil && half(now.Clock) != c.told && !c.atLeap(now.Raw) {
		a.Adjust = c.adjust(now, false)
	}
	// A slewed clock may need a little longer.
	wait := time.Unix(half(now.Clock)+1, 5e8).Sub(now.Clock)
	a.Next = min(a.Next, now.Raw+wait+wait/32+time.Millisecond)
}

// Slewing tells whether the kernel was told more than is to be worked off, which
// Release takes back.
func (c *Core) Slewing() bool { return c.fast && c.at != 0 }

// Release is what the kernel is to be told by who ends: what is left of a fast
// slew, and no more. It is nil when there is none.
func (c *Core) Release(now Reading) *Adjustment {
	if !c.Slewing() || c.atLeap(now.Raw) {
		return nil
	}
	a := c.adjust(now, false)
	a.Slew, a.Fast = c.slew(now, c.offset(now), 1)
	return a
}

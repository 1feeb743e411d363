package discipline

// Smeared tells whether the kernel runs at the rate of a smear, which Leave takes
// back.
func (c *Core) Smeared() bool { return c.at != 0 && c.leap.rate != 0 }

// Frequency is the correction that the oscillator needs, as a ratio.
func (c *Core) Frequency() float64 { return c.frequency }

// Leave is what the kernel is told last by whom steers no more: nobody takes
// the rate of a smear back when it is over, so that the clock is to run at what
// its oscillator needs. It stays as far from UTC as it is. nil: the kernel runs
// so already.
func (c *Core) Leave(now Reading) *Adjustment {
	if !c.Smeared() {
		return nil
	}
	a := c.adjust(now, false)
	a.Frequency = c.frequency
	a.Slew, a.Fast = c.slew(now, c.offset(now), 1)
	if c.atLeap(now.Raw) {
		a.Slew, a.Fast = 0, 0 // the clocks may be a second apart
	}
	return a
}

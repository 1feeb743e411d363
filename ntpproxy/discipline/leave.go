package discipline

// Leave is what the kernel is told last by whom steers no more: nobody takes
// the rate of a smear back when it is over, so that the clock is to run at what
// its oscillator needs. It stays as far from UTC as it is. nil: the kernel runs
// so already.
func (c *Core) Leave(now Reading) *Adjustment {
	if c.at == 0 || c.leap.rate == 0 {
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

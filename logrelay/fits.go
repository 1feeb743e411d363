package logrelay

// fits counts the first lines of a session that are stored although they are as
// the end of what is stored of the sender: what would have decided did not come in
// time, or what is known is older than recentFor. The zero value has nothing to
// count.
type fits struct {
	due   bool    // known is asked for at the first line: many sessions have none for long
	known *resent // nil: it is known what they are
	sure  bool    // if all of them fit they are here twice, else that is suspected
}

// compare says that a session begins at a time, whose first lines are compared.
func (c *relpConn) compare(now int64) {
	c.resent = c.s.recent.resent(c.source, now)
	c.fits.due = c.resent == nil
}

// fit takes the next line that is stored.
func (c *relpConn) fit(o *owed, hash uint64) {
	known := c.fits.known
	before := known.frames
	switch known.take(hash) {
	case open:
		return
	case again:
		if c.fits.sure {
			o.doubled += before + 1
		} else {
			c.s.metrics.doubted.Add(float64(before + 1))
		}
	case unseen, overdue: // another session's, maybe
		c.s.metrics.doubted.Add(float64(before))
	}
	c.fits.known = nil
}

// endFits is for a session that ends before it is known.
func (c *relpConn) endFits() {
	if c.fits.known != nil {
		c.s.metrics.doubted.Add(float64(c.fits.known.frames))
		c.fits.known = nil
	}
}

package ntpproxy

import (
	"slices"
	"time"
)

// sendDelay learns how long a reply is under way from the moment T3 is taken
// until the kernel hands it to the network, when the server was idle before:
// some microseconds, which a client would take, by half, for an error of the
// clock. The median of the last ones is what is expected.
type sendDelay struct {
	last  [sendDelays]time.Duration
	known int // of last, from its start
	next  int
	mid   time.Duration
}

const (
	sendDelays = 15
	// maxSendDelay is the most that T3 is put ahead: what takes longer was
	// held up, and nobody knows for how long the next one will be.
	maxSendDelay = 50 * time.Microsecond
)

// took tells how long a reply took. What can't be (a clock that was stepped
// meanwhile) is not learned from.
func (d *sendDelay) took(t time.Duration) {
	if t < 0 || t > maxDeparture {
		return
	}
	d.last[d.next] = t
	d.next = (d.next + 1) % sendDelays
	d.known = min(d.known+1, sendDelays)
	sorted := d.last
	slices.Sort(sorted[:d.known])
	d.mid = min(sorted[(d.known-1)/2], maxSendDelay)
}

// expected is how long the next one will take; 0 before anything is known.
func (d *sendDelay) expected() time.Duration { return d.mid }

package vrrp

import (
	"fmt"
	"time"
)

// The priorities that weights can lead to (RFC 9568 §5.2.4: 0 and 255 are taken).
const (
	minPriority = 1
	maxPriority = 254
	owner       = 255
)

// track is a tracked thing with what is known about it.
type track struct {
	Track
	known, up bool
	value     int
	since     time.Time
}

// set takes word of it and tells whether that is news.
func (t *track) set(up bool, value int, at time.Time) bool {
	if !up || !t.Number {
		value = 0
	}
	if t.known && t.up == up && t.value == value {
		return false
	}
	if !t.known || t.up != up {
		t.since = at
	}
	t.known, t.up, t.value = true, up, value
	return true
}

// number is what a Number adds to the priority.
func (t *track) number() int {
	if t.Reverse {
		return -t.value * t.Weight
	}
	return t.value * t.Weight
}

// faults tells whether it is down in a way that no priority can express.
func (t *track) faults() bool {
	switch {
	case !t.known:
		return false
	case t.Number && t.Weight == 0:
		return (t.value != 0) != t.Reverse
	case t.Number:
		return t.number() < -maxPriority+1
	}
	return t.Weight == 0 && t.up == t.Reverse
}

// awaited tells whether the first word about it decides if the router may
// take part.
func (t *track) awaited() bool { return !t.known && t.Weight == 0 }

// adds is what it adds to the priority. Of what is not known yet, presumed
// says what a predecessor saw: good, for it held the addresses.
func (t *track) adds(presumed bool) int {
	good := t.up != t.Reverse
	switch {
	case !t.known && !presumed:
		return 0
	case !t.known:
		good = true
	case t.Number:
		return t.number()
	}
	if good == (t.Weight > 0) {
		return t.Weight
	}
	return 0
}

func (t *track) String() string {
	switch {
	case t.Number:
		return fmt.Sprintf("%s says %d", t.Name, t.value)
	case t.up:
		return t.Name + " is up"
	}
	return t.Name + " is down"
}

// weigh makes the priority out of its base and the tracks. An owner's never
// changes (RFC 9568 §5.2.4).
func (r *router) weigh() {
	switch {
	case r.group.yielded:
		r.priority = minPriority
		return
	case r.Priority == owner:
		r.priority = owner
		return
	case r.group.pulled:
		r.priority = maxPriority
		return
	}
	r.priority = r.released()
}

// released is its priority with its weights where nobody gave an order.
func (r *router) released() uint8 {
	if r.Priority == owner {
		return owner
	}
	sum := int(r.Priority)
	for i := range r.tracks {
		sum += r.tracks[i].adds(r.adopted)
	}
	return uint8(min(max(sum, minPriority), maxPriority))
}

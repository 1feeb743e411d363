package ntp

import (
	"encoding/binary"
	"math"
	"time"
)

// smearPrefix is the first byte of the reference of an ntpd that smears a leap
// second; 24 bits follow, how far it is ahead of UTC, in seconds of 2.22 fixed
// point.
const smearPrefix = 254

// chronySmears is the reference of a chronyd that smooths its time.
var chronySmears = Reference{127, 127, 1, 255}

// maxSmear is the most that a smear can be off by, in seconds.
const maxSmear = 1

// SmearReference is the reference of a server that smears a leap second and is
// ahead of UTC by that, -1 s to 1 s, as ntpd writes it.
func SmearReference(ahead time.Duration) Reference {
	fixed := int32(math.Round(max(-maxSmear, min(maxSmear, ahead.Seconds())) * (1 << 22)))
	var r Reference
	binary.BigEndian.PutUint32(r[:], uint32(fixed)&0xffffff|smearPrefix<<24)
	return r
}

// Smear tells whether a server says by its reference that it smears a leap
// second, and how far it is ahead of UTC by that: 0 when it does not say so
// (chronyd). Servers that smear and say nothing are many (Google's, Amazon's).
func (r Reference) Smear() (ahead time.Duration, ok bool) {
	if r == chronySmears {
		return 0, true
	}
	fixed := int32(binary.BigEndian.Uint32(r[:])<<8) >> 8
	seconds := float64(fixed) / (1 << 22)
	if r[0] != smearPrefix || math.Abs(seconds) > maxSmear {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

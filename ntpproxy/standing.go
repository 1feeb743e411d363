package ntpproxy

import (
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
)

// Standing is what the server says of its clock: what was true at a time, and
// how much less sure it becomes from then on.
type Standing struct {
	At             time.Time
	Leap           ntp.Leap
	Stratum        uint8 // 1 to 15; 0 not synchronised
	Reference      ntp.Reference
	Set            time.Time // when the clock was last corrected
	RootDelay      time.Duration
	RootDispersion time.Duration
	Growth         float64 // of RootDispersion, in seconds per second
}

// maxDispersion is the root dispersion from which on a clock is as good as
// not synchronised (MAXDISP, RFC 5905 §7.2).
const maxDispersion = 16 * time.Second

// unsynchronised is the standing of a clock that nobody sets.
func unsynchronised(now time.Time) Standing {
	return Standing{At: now, Leap: ntp.LeapUnknown, Reference: ntp.KissInit, RootDispersion: maxDispersion}
}

// dispersion is the root dispersion at a time.
func (s *Standing) dispersion(now time.Time) time.Duration {
	return s.RootDispersion + time.Duration(s.Growth*float64(max(0, now.Sub(s.At))))
}

// header is the standing as a packet carries it. A clock that has not been
// set for so long that its error exceeds MAXDISP is not synchronised any more.
func (s *Standing) header(now time.Time) ntp.Packet {
	dispersion := s.dispersion(now)
	if s.Leap == ntp.LeapUnknown || s.Stratum == 0 || dispersion >= maxDispersion {
		return ntp.Packet{Leap: ntp.LeapUnknown, ReferenceID: ntp.KissInit, RootDispersion: ntp.FromDuration(maxDispersion)}
	}
	return ntp.Packet{
		Leap: s.Leap, Stratum: s.Stratum, ReferenceID: s.Reference,
		Reference: ntp.FromTime(s.Set),
		RootDelay: ntp.FromDuration(s.RootDelay), RootDispersion: ntp.FromDuration(dispersion),
	}
}

// kernelGrowth is what the kernel adds to its maximum error each second
// (MAXFREQ, ntp_update_second()): a healthy clock drifts less.
const kernelGrowth = 500e-6

// kernelReference names a clock of which only the kernel's word is known.
var kernelReference = ntp.Reference{127, 127, 0, 1}

// fromKernel is the standing of a clock that another daemon disciplines, as
// far as the kernel knows it. What the kernel does not know is the stratum,
// which the configuration gives.
func fromKernel(k clock.State, stratum uint8, now time.Time) Standing {
	if !k.Synchronised || k.MaxError >= maxDispersion {
		return unsynchronised(now)
	}
	s := Standing{
		At: now, Stratum: stratum, Reference: kernelReference, Set: now,
		RootDispersion: k.MaxError, Growth: kernelGrowth,
	}
	switch {
	case k.Insert:
		s.Leap = ntp.LeapInsert
	case k.Delete:
		s.Leap = ntp.LeapDelete
	}
	return s
}

// with is what chronyd says of the clock beside what the kernel does. The
// worse of the two decides whether the clock is synchronised: the kernel's may
// be kept by another, and chronyd stays synchronised for the kernel when its
// sources are gone.
func (s Standing) with(t tracking) Standing {
	switch {
	case s.Stratum == 0:
		return s
	case t.Stratum == 0:
		return unsynchronised(s.At)
	}
	s.Stratum, s.Reference, s.Set = t.Stratum, t.Reference, t.Set
	s.RootDelay, s.RootDispersion = t.RootDelay, t.RootDispersion
	if s.Leap == ntp.LeapNone {
		s.Leap = t.Leap
	}
	return s
}

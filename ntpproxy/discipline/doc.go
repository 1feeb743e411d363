// Package discipline decides how a clock is to be steered from what several
// sources of time say: RFC 5905's chain of filter, intersection, cluster and
// combine, with a regression of offset and frequency for each source in place
// of the clock filter and of the phase-locked loop.
//
// It is pure: it is told samples and the time, and says whom to ask and what
// the kernel's frequency, slew or step should be. It reads no clock, opens no
// socket and starts no goroutine.
package discipline

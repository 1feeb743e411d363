// Package ntp knows NTP's packets and its way to write times (RFC 5905 §6,
// §7.3): what the server, the client and the check have in common.
package ntp

import (
	"math"
	"math/bits"
	"time"
)

// Timestamp is a point in time as packets carry it: seconds since the start of
// an era in the upper, their fraction in the lower 32 bits. Era 0 began in
// 1900, era 1 begins on 2036-02-07 06:28:16 UTC; which era is meant a packet
// does not say. Zero is no time at all.
type Timestamp uint64

// unixEpoch is 1970 in seconds of era 0.
const unixEpoch = 2208988800

// FromUnixNano is the Timestamp of a time in nanoseconds since 1970.
func FromUnixNano(ns int64) Timestamp {
	seconds := ns / 1e9
	rest := ns % 1e9
	if rest < 0 {
		seconds, rest = seconds-1, rest+1e9
	}
	// Rounded up, so that whoever cuts it down to nanoseconds gets them back.
	fraction := (uint64(rest)<<32 + 1e9 - 1) / 1e9
	return Timestamp(uint64(uint32(seconds+unixEpoch))<<32 | fraction)
}

// FromTime is the Timestamp of t.
func FromTime(t time.Time) Timestamp {
	seconds := uint32(t.Unix() + unixEpoch)
	return Timestamp(uint64(seconds)<<32) | FromUnixNano(int64(t.Nanosecond()))&math.MaxUint32
}

// Time is the time that t stands for, in the era that puts it nearest to
// another time: at most 68 years away from it.
func (t Timestamp) Time(near time.Time) time.Time {
	return near.Add(t.Sub(FromTime(near)))
}

// Sub is how much later t is than u, if the two are less than 68 years apart;
// eras don't matter (RFC 5905 §6).
func (t Timestamp) Sub(u Timestamp) time.Duration {
	difference := int64(t - u)
	if difference < 0 {
		return -toDuration(uint64(-difference))
	}
	return toDuration(uint64(difference))
}

// toDuration turns 32.32 seconds into nanoseconds, cut down.
func toDuration(v uint64) time.Duration {
	high, low := bits.Mul64(v, 1e9)
	return time.Duration(high<<32 | low>>32)
}

// Short is a duration as packets carry it, in 16.16 seconds: root delay and
// root dispersion.
type Short uint32

// MaxShort is the longest duration that a Short holds, 18 hours.
const MaxShort = Short(math.MaxUint32)

// FromDuration is d rounded up, so that an error bound is never understated;
// 0 for a negative d, MaxShort for what is too long.
func FromDuration(d time.Duration) Short {
	switch {
	case d <= 0:
		return 0
	case d >= MaxShort.Duration():
		return MaxShort
	}
	return Short((uint64(d)<<16 + 1e9 - 1) / 1e9)
}

// Duration is s in nanoseconds.
func (s Short) Duration() time.Duration {
	return time.Duration(uint64(s) * 1e9 >> 16)
}

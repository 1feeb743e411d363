package ntpproxy

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
)

func listenLocal(t *testing.T) (net.PacketConn, string) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, conn.LocalAddr().String()
}

func date(t testing.TB, text string) time.Time {
	t.Helper()
	d, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSourcesTimeIsUnderstoodInEveryEra(t *testing.T) {
	for name, test := range map[string]struct{ ours, theirs string }{
		"both in 2026":                           {"2026-11-25T09:00:00Z", "2026-11-25T09:00:01Z"},
		"just before the roll-over of NTP's era": {"2036-02-07T06:28:15Z", "2036-02-07T06:28:15.9Z"},
		"over it":                                {"2036-02-07T06:28:15Z", "2036-02-07T06:28:17Z"},
		"back over it":                           {"2036-02-07T06:28:17Z", "2036-02-07T06:28:15Z"},
		"over the roll-over of 32 bits of seconds": {"2038-01-19T03:14:07Z", "2038-01-19T03:14:09Z"},
		"a machine that woke up in 1970":           {"1970-01-01T00:00:05Z", "2026-11-25T09:00:00Z"},
		"the same, after the era changed":          {"1970-01-01T00:00:05Z", "2040-11-25T09:00:00Z"},
		"a machine that is years ahead":            {"2060-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			left := clock.Reading{Clock: date(t, test.ours), Raw: time.Hour}
			now := clock.Reading{Clock: left.Clock.Add(time.Millisecond), Raw: time.Hour + time.Millisecond}
			there := date(t, test.theirs)
			p := ntp.Packet{Stratum: 1, Receive: ntp.FromTime(there), Transmit: ntp.FromTime(there.Add(200 * time.Microsecond))}
			s, err := measure(p, left, now, 0, now.Clock.Add(-300*time.Microsecond).UnixNano())
			if err != nil {
				t.Fatal(err)
			}
			if d := s.Server.Sub(there.Add(100 * time.Microsecond)); d.Abs() > time.Microsecond {
				t.Errorf("understood as %v", s.Server)
			}
			if (s.Delay-500*time.Microsecond).Abs() > time.Microsecond || (s.Raw-time.Hour-350*time.Microsecond).Abs() > time.Microsecond {
				t.Errorf("delay %v, at %v", s.Delay, s.Raw-time.Hour)
			}
		})
	}
}

func TestSourceThatContradictsItselfIsNotHeard(t *testing.T) {
	left := clock.Reading{Clock: start, Raw: time.Hour}
	now := clock.Reading{Clock: start.Add(time.Millisecond), Raw: time.Hour + time.Millisecond}
	at := ntp.FromTime(start)
	for name, p := range map[string]ntp.Packet{
		"it never received":               {Transmit: at},
		"it answered before it was asked": {Receive: ntp.FromTime(start.Add(time.Second)), Transmit: at},
		"it had it longer than it took":   {Receive: at, Transmit: ntp.FromTime(start.Add(time.Second))},
		"it lives in 1999":                {Receive: ntp.FromTime(date(t, "1999-01-01T00:00:00Z")), Transmit: ntp.FromTime(date(t, "1999-01-01T00:00:00Z"))},
	} {
		if s, err := measure(p, left, now, 0, 0); !errors.Is(err, errImpossible) {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	s, err := measure(ntp.Packet{Leap: ntp.LeapUnknown, Stratum: 2, Receive: at, Transmit: at}, left, now, 0, 0)
	if err != nil || s.Stratum != 0 {
		t.Errorf("a source that is not synchronised has stratum %d, %v", s.Stratum, err)
	}
}

// What the machine itself needs for a request and a reply is nobody's way.
func TestWayBeginsAndEndsAtTheNetwork(t *testing.T) {
	const us = int64(time.Microsecond)
	ready := clock.Reading{Clock: start, Raw: time.Hour}
	now := clock.Reading{Clock: start.Add(time.Millisecond), Raw: time.Hour + time.Millisecond}
	at := ntp.FromTime(start.Add(400 * time.Microsecond))
	p := ntp.Packet{Stratum: 1, Receive: at, Transmit: at}
	from := start.UnixNano()
	for name, test := range map[string]struct {
		left, arrived int64
		delay, middle time.Duration // since ready
	}{
		"the kernel says neither":          {0, 0, time.Millisecond, 500 * time.Microsecond},
		"it says when the request left":    {from + 300*us, 0, 700 * time.Microsecond, 650 * time.Microsecond},
		"it says both":                     {from + 300*us, from + 500*us, 200 * time.Microsecond, 400 * time.Microsecond},
		"the clock was stepped back":       {from - 1e9, from - 1e9, time.Millisecond, 500 * time.Microsecond},
		"the clock was stepped forward":    {from + 1e9, from + 1e9, time.Millisecond, 500 * time.Microsecond},
		"stepped while it was on its way":  {from + 600*us, from + 500*us, 500 * time.Microsecond, 250 * time.Microsecond},
		"the request left when it arrived": {from + 500*us, from + 500*us, 0, 500 * time.Microsecond},
	} {
		s, err := measure(p, ready, now, test.left, test.arrived)
		if err != nil || s.Delay != test.delay || s.Raw-ready.Raw != test.middle {
			t.Errorf("%s: delay %v, middle at %v, %v; want %v, %v", name, s.Delay, s.Raw-ready.Raw, err, test.delay, test.middle)
		}
	}
}

// The machine is busy between its look at the clock and the network, on both
// ways. The kernel says when the request left and when the reply arrived, and
// that is what is believed: of many tries, one at least has no other delay.
func TestExchangeBelievesTheKernelOnWhenItsPacketsLeftAndArrived(t *testing.T) {
	const busy, tries = 20 * time.Millisecond, 20
	at := liar(t, 0)
	for name, test := range map[string]struct{ before, after time.Duration }{
		"the request waits": {busy, 0}, "the reply waits": {0, busy},
	} {
		least := time.Hour
		for try := 0; try < tries && least > busy/2; try++ {
			looks := 0
			s, _, _, err := exchangeBy(t.Context(), at, func() (clock.Reading, error) {
				if looks++; looks > 1 {
					spin(test.after)
					return clock.Now()
				}
				now, err := clock.Now()
				spin(test.before)
				return now, err
			})
			if errors.Is(err, context.DeadlineExceeded) {
				continue // the machine stood still for as long as a source has
			}
			if err != nil {
				t.Fatal(err)
			}
			least = min(least, s.Delay)
		}
		if least > busy/2 {
			t.Errorf("%s for %v, and the least delay of %d exchanges is %v: the program's times are believed", name, busy, tries, least)
		}
	}
}

// spin keeps the processor busy.
func spin(d time.Duration) {
	for from := time.Now(); time.Since(from) < d; {
	}
}

func FuzzMeasure(f *testing.F) {
	f.Add(make([]byte, ntp.Size), int64(0), int64(1e6), int64(0), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, ours, took, departed, arrived int64) {
		p, err := ntp.Parse(b)
		if err != nil || took < 0 || took > int64(exchangeTimeout) {
			return
		}
		left := clock.Reading{Clock: time.Unix(0, ours), Raw: time.Hour}
		now := clock.Reading{Clock: left.Clock.Add(time.Duration(took)), Raw: time.Hour + time.Duration(took)}
		s, err := measure(p, left, now, departed, arrived)
		if err != nil {
			return
		}
		if s.Delay < 0 || s.Raw < left.Raw || s.Raw > now.Raw || s.Precision <= 0 || s.Server.Before(notBefore) {
			t.Errorf("%+v of %+v", s, p)
		}
	})
}

func FuzzParseDrift(f *testing.F) {
	f.Add("-12.345678 0.012000\n")
	f.Add("NaN 1")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDrift([]byte(text))
		if err == nil && !(d.frequency >= -clock.MaxFrequency && d.frequency <= clock.MaxFrequency && d.skew > 0 && d.skew <= clock.MaxFrequency) {
			t.Errorf("%q gives %+v", text, d)
		}
	})
}

func TestDriftFileIsRefusedWithAReason(t *testing.T) {
	for text, want := range map[string]string{"": "0 of 2", "1": "1 of 2", "501 1": "out of range", "1 0": "out of range", "1 -1": "out of range", "x 1": "0 of 2"} {
		if _, err := parseDrift([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestSendDelayIsTheMedianOfWhatCanBe(t *testing.T) {
	var d sendDelay
	if d.expected() != 0 {
		t.Error("something is expected before anything is known")
	}
	for _, took := range []time.Duration{7, 5, -3 * time.Second, 900, time.Hour, 6, 8} {
		d.took(took * time.Microsecond)
	}
	if got := d.expected(); got != 7*time.Microsecond {
		t.Errorf("%v is expected, want 7µs", got)
	}
	for range sendDelays {
		d.took(time.Millisecond)
	}
	if got := d.expected(); got != maxSendDelay {
		t.Errorf("%v is expected of a machine that is too busy, want %v at most", got, maxSendDelay)
	}
}

// A server and a client whose clocks are right go through the end of NTP's era
// 0 (2036-02-07 06:28:16) and that of 32-bit Unix times (2038-01-19 03:14:08).
func TestTimeIsServedAndReadAcrossTheRollOversOf2036And2038(t *testing.T) {
	for _, rollOver := range []time.Time{time.Date(2036, 2, 7, 6, 28, 16, 0, time.UTC), time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC)} {
		for _, before := range []time.Duration{time.Hour, 1500 * time.Microsecond, 500 * time.Microsecond, 0, -time.Hour} {
			c := newCore(t)
			c.now = rollOver.Add(-before)
			c.policy.standing = fromKernel(synchronised, 4, c.now.Add(-time.Minute))
			left := clock.Reading{Clock: c.now.Add(-time.Millisecond), Raw: time.Hour}
			_, p := c.send("10.1.0.9", request(nil)) // T2 is now, T3 a millisecond later
			now := clock.Reading{Clock: c.now.Add(2 * time.Millisecond), Raw: time.Hour + 3*time.Millisecond}
			s, err := measure(p, left, now, 0, 0)
			if err != nil {
				t.Errorf("%v before %v: %v", before, rollOver, err)
				continue
			}
			middle := left.Clock.Add(s.Raw - left.Raw)
			if d := s.Server.Sub(middle); d.Abs() > time.Microsecond || (s.Delay-2*time.Millisecond).Abs() > time.Microsecond || s.Stratum != 4 {
				t.Errorf("%v before %v: off by %v, delay %v, stratum %d", before, rollOver, d, s.Delay, s.Stratum)
			}
			if set := p.Reference.Time(now.Clock); set.Sub(c.now).Abs() > 2*time.Minute {
				t.Errorf("%v before %v: the clock was last set in %v", before, rollOver, set)
			}
		}
	}
}

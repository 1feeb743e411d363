package ntp

import (
	"encoding/hex"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestTimesSurviveTheRollOversOf2036And2038(t *testing.T) {
	for _, text := range []string{
		"1970-01-01T00:00:00Z", "2026-11-25T09:00:00.123456789Z",
		"2036-02-07T06:28:15.999999999Z", "2036-02-07T06:28:16Z", "2036-02-07T06:28:16.000000001Z",
		"2038-01-19T03:14:07Z", "2038-01-19T03:14:08.5Z", "2100-01-01T00:00:00Z",
	} {
		want := at(text)
		for _, away := range []time.Duration{0, 20 * 365 * 24 * time.Hour, -20 * 365 * 24 * time.Hour} {
			if got := FromTime(want).Time(want.Add(away)); !got.Equal(want) {
				t.Errorf("%s, read %v away: %v", text, away, got)
			}
		}
		if a, b := FromTime(want), FromUnixNano(want.UnixNano()); a != b {
			t.Errorf("%s: %x from a time, %x from nanoseconds", text, a, b)
		}
	}
}

func TestDifferencesCrossTheEra(t *testing.T) {
	before, after := at("2036-02-07T06:28:15.75Z"), at("2036-02-07T06:28:16.5Z")
	if d := FromTime(after).Sub(FromTime(before)); d != 750*time.Millisecond {
		t.Errorf("across the roll-over: %v, want 750ms", d)
	}
	if d := FromTime(before).Sub(FromTime(after)); d != -750*time.Millisecond {
		t.Errorf("back across the roll-over: %v, want -750ms", d)
	}
	if d := Timestamp(math.MaxInt64).Sub(0); d <= 0 {
		t.Errorf("68 years: %v", d)
	}
}

func TestDurationsAreNeverUnderstated(t *testing.T) {
	for d, want := range map[time.Duration]Short{
		-time.Second: 0, 0: 0, 1: 1, time.Second: 1 << 16, time.Second + 1: 1<<16 + 1,
		18*time.Hour + 15*time.Minute: MaxShort, math.MaxInt64: MaxShort,
	} {
		if got := FromDuration(d); got != want {
			t.Errorf("%v is written %d, want %d", d, got, want)
		}
	}
	if d := Short(1 << 15).Duration(); d != 500*time.Millisecond {
		t.Errorf("half a second is read as %v", d)
	}
}

// A stratum 1 server's reply, as RFC 5905 figure 8 lays it out.
const captured = "240106e8" + "0000004200000071" + "7f7f0101" + "ee0a5f2b1d6a1f00" + "5b1c7e0a9d3f2c11" + "ee0a5f3000112233" + "ee0a5f3000223344"

func TestPacketIsReadAndWrittenAsItIsOnTheWire(t *testing.T) {
	wire, err := hex.DecodeString(captured)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(wire)
	if err != nil {
		t.Fatal(err)
	}
	want := Packet{
		Version: 4, Mode: ModeServer, Stratum: 1, Poll: 6, Precision: -24,
		RootDelay: 0x42, RootDispersion: 0x71, ReferenceID: Reference{127, 127, 1, 1},
		Reference: 0xee0a5f2b1d6a1f00, Origin: 0x5b1c7e0a9d3f2c11,
		Receive: 0xee0a5f3000112233, Transmit: 0xee0a5f3000223344,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	var out [Size]byte
	got.Put(&out)
	if hex.EncodeToString(out[:]) != captured {
		t.Errorf("written %x", out)
	}
}

func TestLengthsThatAreNoPacketAreRefused(t *testing.T) {
	for length, want := range map[int]error{0: ErrShort, 47: ErrShort, 48: nil, 49: ErrLength, 68: nil, 1024: nil} {
		if _, err := Parse(make([]byte, length)); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v, want %v", length, err, want)
		}
	}
}

func reply(change func(*Packet)) []byte {
	p := Packet{Version: 4, Mode: ModeServer, Stratum: 2, Origin: 7, ReferenceID: Reference{10, 1, 0, 1},
		Receive: FromTime(at("2026-01-01T00:00:10.1Z")), Transmit: FromTime(at("2026-01-01T00:00:10.2Z"))}
	change(&p)
	var out [Size]byte
	p.Put(&out)
	return out[:]
}

func TestReplyGivesOffsetAndDelay(t *testing.T) {
	left, arrived := at("2026-01-01T00:00:00Z"), at("2026-01-01T00:00:00.3Z")
	a, err := Match(reply(func(*Packet) {}), 7, left, arrived)
	if err != nil {
		t.Fatal(err)
	}
	near := func(got, want time.Duration) bool { return (got - want).Abs() < 2 }
	if !near(a.Offset, 10*time.Second) || !near(a.Delay, 200*time.Millisecond) || !a.Synchronised() {
		t.Errorf("offset %v, delay %v, synchronised %v", a.Offset, a.Delay, a.Synchronised())
	}
}

func TestReplyToAnotherRequestIsNotBelieved(t *testing.T) {
	now := at("2026-01-01T00:00:00Z")
	for name, test := range map[string]struct {
		change func(*Packet)
		sent   Timestamp
		want   error
	}{
		"forged origin":        {func(p *Packet) { p.Origin = 8 }, 7, ErrOrigin},
		"nothing was sent":     {func(p *Packet) { p.Origin = 0 }, 0, ErrOrigin},
		"a client's packet":    {func(p *Packet) { p.Mode = ModeClient }, 7, ErrMode},
		"a version to come":    {func(p *Packet) { p.Version = 5 }, 7, ErrMode},
		"an honest reply":      {func(*Packet) {}, 7, nil},
		"not yet synchronised": {func(p *Packet) { p.Leap, p.Stratum, p.ReferenceID = LeapUnknown, 0, KissInit }, 7, nil},
	} {
		if _, err := Match(reply(test.change), test.sent, now, now); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

func TestKissOfDeathIsAnErrorThatNamesItsCode(t *testing.T) {
	now := at("2026-01-01T00:00:00Z")
	_, err := Match(reply(func(p *Packet) { p.Leap, p.Stratum, p.ReferenceID = LeapUnknown, 0, KissRate }), 7, now, now)
	if kiss, ok := errors.AsType[*KissError](err); !ok || kiss.Code != KissRate {
		t.Errorf("error %v, want kiss code RATE", err)
	}
}

func TestMACsAreToldFromExtensionFields(t *testing.T) {
	for length, want := range map[int]bool{0: false, 4: true, 16: false, 20: true, 24: true, 28: false} {
		if HasMAC(make([]byte, length)) != want {
			t.Errorf("%d bytes behind the packet: want %v", length, want)
		}
	}
}

func FuzzPacket(f *testing.F) {
	wire, _ := hex.DecodeString(captured)
	f.Add(wire)
	f.Add(append(wire, make([]byte, 20)...))
	f.Add([]byte{0x1b})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		var out [Size]byte
		p.Put(&out)
		if string(out[:]) != string(b[:Size]) {
			t.Errorf("read %x, written %x", b[:Size], out)
		}
		now := time.Unix(0, 0)
		if a, err := Match(b, p.Origin, now, now.Add(time.Second)); err == nil && a.Origin == 0 {
			t.Error("a reply without an origin was believed")
		}
		_ = p.ReferenceID.String()
		_ = p.Transmit.Time(now)
	})
}

package ntpproxy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
)

func TestReplyIsHonestAboutTheClock(t *testing.T) {
	for name, test := range map[string]struct {
		kernel clock.State
		want   ntp.Packet
	}{
		"kept by another daemon": {synchronised, ntp.Packet{
			Stratum: 4, ReferenceID: kernelReference, Reference: ntp.FromTime(start), RootDispersion: ntp.FromDuration(3 * time.Millisecond)}},
		"a leap second is coming": {clock.State{Synchronised: true, Insert: true}, ntp.Packet{
			Leap: ntp.LeapInsert, Stratum: 4, ReferenceID: kernelReference, Reference: ntp.FromTime(start)}},
		"a second will be left out": {clock.State{Synchronised: true, Delete: true}, ntp.Packet{
			Leap: ntp.LeapDelete, Stratum: 4, ReferenceID: kernelReference, Reference: ntp.FromTime(start)}},
		"kept by nobody": {clock.State{MaxError: 16 * time.Second}, ntp.Packet{
			Leap: ntp.LeapUnknown, ReferenceID: ntp.KissInit, RootDispersion: ntp.FromDuration(maxDispersion)}},
		"so unsure that it says nothing": {clock.State{Synchronised: true, MaxError: 16 * time.Second}, ntp.Packet{
			Leap: ntp.LeapUnknown, ReferenceID: ntp.KissInit, RootDispersion: ntp.FromDuration(maxDispersion)}},
	} {
		c := newCore(t)
		c.policy.standing = fromKernel(test.kernel, 4, start)
		want := test.want
		want.Version, want.Mode, want.Poll, want.Precision = 4, ntp.ModeServer, 6, -24
		want.Origin, want.Receive, want.Transmit = 0x1234567890abcdef, ntp.FromTime(start), ntp.FromTime(start.Add(time.Millisecond))
		_, got := c.send("10.1.0.7", request(nil))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestDispersionGrowsUntilTheClockIsNotSynchronisedAnyMore(t *testing.T) {
	c := newCore(t)
	_, p := c.after(time.Hour).send("10.1.0.7", request(nil))
	if want := ntp.FromDuration(3*time.Millisecond + 1800*time.Millisecond); p.RootDispersion != want || p.Stratum != 4 {
		t.Errorf("after an hour: stratum %d, root dispersion %v, want %v", p.Stratum, p.RootDispersion.Duration(), want.Duration())
	}
	_, p = c.after(9*time.Hour).send("10.1.0.7", request(nil))
	if p.Leap != ntp.LeapUnknown || p.Stratum != 0 {
		t.Errorf("after ten hours: leap %v, stratum %d, want unsynchronised", p.Leap, p.Stratum)
	}
}

func TestEachKindOfDatagramGetsWhatItMust(t *testing.T) {
	mode := func(m ntp.Mode) func(*ntp.Packet) { return func(p *ntp.Packet) { p.Mode = m } }
	version := func(v uint8) func(*ntp.Packet) { return func(p *ntp.Packet) { p.Version = v } }
	const node, guest, stranger = "10.1.0.7", "192.0.2.1", "198.51.100.1"
	for name, test := range map[string]struct {
		from    string
		payload []byte
		want    outcome
		size    int
	}{
		"version 4":               {node, request(nil), served, 48},
		"version 3":               {node, request(version(3)), served, 48},
		"version 1":               {node, request(version(1)), served, 48},
		"version 5":               {node, request(version(5)), dropVersion, 0},
		"version 0":               {node, request(version(0)), dropVersion, 0},
		"an allowed guest":        {guest, request(nil), served, 48},
		"a guest of IPv6":         {"2001:db8:2::1", request(nil), served, 48},
		"a node of IPv6":          {"2001:db8:1::7", request(nil), served, 48},
		"a stranger":              {stranger, request(nil), kissDeny, 48},
		"a denied guest":          {"192.0.2.66", request(nil), kissDeny, 48},
		"symmetric active":        {node, request(mode(ntp.ModeActive)), refusedPeer, 48},
		"a stranger's peering":    {stranger, request(mode(ntp.ModeActive)), kissDeny, 48},
		"symmetric passive":       {node, request(mode(ntp.ModePassive)), dropMode, 0},
		"a server's reply":        {node, request(mode(ntp.ModeServer)), dropMode, 0},
		"a broadcast":             {node, request(mode(ntp.ModeBroadcast)), dropMode, 0},
		"mode 0":                  {node, request(mode(ntp.ModeReserved)), dropMode, 0},
		"mode 7":                  {node, request(mode(ntp.ModePrivate)), dropMode, 0},
		"mode 7, monlist":         {node, []byte{0x17, 0, 3, 42, 0, 0, 0, 0}, dropMode, 0},
		"mode 6":                  {node, []byte{0x16, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, refusedCtrl, 12},
		"mode 6, a response":      {node, []byte{0x16, 0x82, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, dropShort, 0},
		"mode 6, cut short":       {node, []byte{0x16, 2, 0, 1}, dropShort, 0},
		"mode 6 of a stranger":    {stranger, []byte{0x16, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, dropDenied, 0},
		"an empty datagram":       {node, nil, dropShort, 0},
		"47 bytes":                {node, request(nil)[:47], dropShort, 0},
		"49 bytes":                {node, append(request(nil), 0), dropShort, 0},
		"with a MAC":              {node, append(request(nil), make([]byte, 20)...), dropMAC, 0},
		"with an extension field": {node, append(request(nil), make([]byte, 28)...), served, 48},
	} {
		r, _ := newCore(t).send(test.from, test.payload)
		if r.outcome != test.want || r.size != test.size {
			t.Errorf("%s: %v with %d bytes, want %v with %d", name, r.outcome, r.size, test.want, test.size)
		}
	}
}

func TestSymmetricModeIsRefusedInTheModeThatThePeerHears(t *testing.T) {
	_, p := newCore(t).send("10.1.0.7", request(func(p *ntp.Packet) { p.Mode = ntp.ModeActive }))
	if p.Mode != ntp.ModePassive || p.Stratum != 0 || p.ReferenceID != ntp.KissDeny || p.Origin != 0x1234567890abcdef {
		t.Errorf("reply %+v", p)
	}
}

func TestControlMessageIsRefusedAsProhibited(t *testing.T) {
	c := newCore(t)
	c.send("10.1.0.7", []byte{0xd6, 2, 0xab, 0xcd, 1, 2, 0, 9, 0, 1, 0, 4, 'x', 'y', 'z', 0})
	want := []byte{0x16, 0xc2, 0xab, 0xcd, 7, 0, 0, 9, 0, 0, 0, 0}
	if diff := cmp.Diff(want, c.out[:12]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNodesOfTheClusterAreNeverLimited(t *testing.T) {
	c := newCore(t)
	for i := range 1000 {
		if r, _ := c.send("10.1.0.7", request(nil)); r.outcome != served {
			t.Fatalf("request %d: %v", i, r.outcome)
		}
	}
}

func TestStrangerWhoAsksTooOftenIsToldAndThenSlowedDown(t *testing.T) {
	c := newCore(t)
	var got []outcome
	for range 4 + 17 {
		r, p := c.send("192.0.2.1", request(nil))
		got = append(got, r.outcome)
		if r.outcome == kissRate && (p.ReferenceID != ntp.KissRate || p.Poll < 6 || p.Leap != ntp.LeapUnknown) {
			t.Errorf("kiss of death %+v", p)
		}
	}
	want := []outcome{served, served, served, served} // the burst
	for range 2 {
		want = append(want, kissRate, dropRate, dropRate, dropRate, dropRate, dropRate, dropRate, served)
	}
	if diff := cmp.Diff(append(want, kissRate), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r, _ := c.send("192.0.2.2", request(nil)); r.outcome != served {
		t.Errorf("another guest: %v", r.outcome)
	}
	if r, _ := c.after(time.Second).send("192.0.2.1", request(nil)); r.outcome != served {
		t.Errorf("a second later: %v", r.outcome)
	}
}

func TestBootStormIsServedWholeWhileAStrangerIsLimited(t *testing.T) {
	c := newCore(t)
	answered, asked := 0, 0
	for i := range 2000 * 8 {
		c.after(100 * time.Microsecond)
		from := netip.AddrFrom4([4]byte{10, 1, 0, byte(i % 250)})
		if r, _ := c.send(from.String(), request(nil)); r.outcome != served {
			t.Fatalf("request %d of %v: %v", i, from, r.outcome)
		}
		asked++
		if r, _ := c.send("192.0.2.1", request(nil)); r.outcome == served {
			answered++
		}
	}
	// The burst of 4, one a second for 1.6 s, and one in eight of the rest.
	if most := asked/leakEvery + 6; answered > most || answered < asked/leakEvery/2 {
		t.Errorf("the stranger got %d answers to %d requests, want %d at most", answered, asked, most)
	}
}

func TestDeniedClientIsToldRarely(t *testing.T) {
	c := newCore(t)
	told := 0
	for range 60 {
		if r, _ := c.send("198.51.100.1", request(nil)); r.size > 0 {
			told++
		}
	}
	if told != 4 {
		t.Errorf("told %d times at once, want 4: the burst", told)
	}
}

func TestLimiterForgetsTheQuietNotTheLoud(t *testing.T) {
	l := newLimiter(time.Second, 2, 99)
	loud := clientKey(netip.MustParseAddr("203.0.113.7"))
	var now time.Duration
	for range 1000 {
		l.take(loud, now)
	}
	for i := range 100_000 {
		now += 10 * time.Microsecond
		l.take(clientKey(netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})), now)
		if i%100 == 0 && l.take(loud, now) == 0 && i < 90_000 {
			t.Fatalf("after %d others the loud one's limit was forgotten", i)
		}
	}
}

func TestClientsOfOneIPv6NetworkShareALimit(t *testing.T) {
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:1")
	if clientKey(a) != clientKey(b) || clientKey(a) == clientKey(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("a client is not its /64")
	}
	if clientKey(netip.IPv6Unspecified()) == 0 || clientKey(netip.IPv4Unspecified()) == 0 {
		t.Error("a key is 0, the mark of an empty place")
	}
}

// A client that speaks interleaved mode names the arrival of its last request
// as the origin; its third reply is the first to be interleaved.
func TestInterleavedReplyTellsWhenTheLastOneReallyLeft(t *testing.T) {
	c := newCore(t)
	_, first := c.send("10.1.0.7", request(nil))
	second := request(func(p *ntp.Packet) { p.Origin, p.Receive, p.Transmit = first.Receive, 2001, 2002 })
	r, reply2 := c.after(time.Second).send("10.1.0.7", second)
	if r.outcome != served || !r.pair || reply2.Origin != 2002 {
		t.Fatalf("second: %v, pair %v, %+v", r.outcome, r.pair, reply2)
	}
	really := reply2.Transmit + 7
	c.pairs.correct(reply2.Receive, really, maxDeparture)

	third := request(func(p *ntp.Packet) { p.Origin, p.Receive, p.Transmit = reply2.Receive, 3001, 3002 })
	r, reply3 := c.after(time.Second).send("10.1.0.7", third)
	if r.outcome != interleaved || reply3.Origin != 3001 || reply3.Transmit != really || reply3.Receive != ntp.FromTime(c.now) {
		t.Errorf("third: %v, %+v; want the last reply's departure %x", r.outcome, reply3, really)
	}
	if r, again := c.send("10.1.0.7", third); r.outcome != served || again.Origin != 3002 {
		t.Errorf("a copy of the third: %v, %+v, want basic mode", r.outcome, again)
	}
}

func TestForgedOriginGetsABasicReply(t *testing.T) {
	c := newCore(t)
	victim := request(func(p *ntp.Packet) { p.Origin, p.Receive, p.Transmit = 1, 2, 3 })
	_, p := c.send("10.1.0.7", victim)
	theft := request(func(q *ntp.Packet) { q.Origin, q.Receive, q.Transmit = p.Receive, 5, 6 })
	if r, got := c.send("10.1.0.8", theft); r.outcome != served || got.Origin != 6 {
		t.Errorf("another client's origin: %v, %+v", r.outcome, got)
	}
}

func TestWhatTheKernelSaysAfterAStepIsNoDeparture(t *testing.T) {
	p := &pairs{}
	for name, left := range map[string]ntp.Timestamp{
		"before it was stamped": 1<<32 - 1<<20, "an hour later": 3601 << 32,
	} {
		p.put(7, 5, 1<<32)
		p.correct(5, left, maxDeparture)
		if got, _ := p.take(7, 5); got != 1<<32 {
			t.Errorf("%s: took %x", name, uint64(got))
		}
	}
}

func TestReplyIsNeverLargerThanItsRequest(t *testing.T) {
	c := newCore(t)
	for mode := range byte(8) {
		for length := range 80 {
			b := make([]byte, length)
			if length > 0 {
				b[0] = 4<<3 | mode
			}
			if r, _ := c.send("10.1.0.7", b); r.size > length {
				t.Errorf("mode %d, %d bytes: answered with %d", mode, length, r.size)
			}
		}
	}
}

func TestRespondingDoesNotAllocate(t *testing.T) {
	c := newCore(t)
	from := netip.MustParseAddr("192.0.2.1")
	b := request(func(p *ntp.Packet) { p.Origin, p.Receive, p.Transmit = 1, 2, 3 })
	c.prepare(c.policy, c.now, 0)
	if n := testing.AllocsPerRun(100, func() { c.respond(&c.out, b, from, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzRespond(f *testing.F) {
	f.Add(request(nil), true)
	f.Add([]byte{0x16, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, false)
	f.Fuzz(func(t *testing.T, b []byte, node bool) {
		from := "10.1.0.7"
		if !node {
			from = "192.0.2.1"
		}
		c := newCore(t)
		r, p := c.send(from, b)
		if r.size > len(b) {
			t.Errorf("%d bytes answered with %d", len(b), r.size)
		}
		if r.size == ntp.Size && p.Origin == 0 && r.outcome == interleaved {
			t.Errorf("interleaved without an origin: %x", b)
		}
		if r.size > 0 && c.out[0]&7 == byte(ntp.ModeClient) {
			t.Errorf("the reply to %x is a request: two servers would talk forever", b)
		}
		_ = fmt.Sprint(r.outcome)
	})
}

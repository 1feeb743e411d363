package ntpproxy

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

func TestPoolsNameIsLookedUpDailyAndAnotherServerStartsAnew(t *testing.T) {
	const raw = 5 * time.Hour
	first, second := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	k := &keeper{
		server: &Server{log: slog.New(slog.DiscardHandler)}, set: &settings{}, names: []string{"pool.example.org:123"},
		addrs: make([]netip.AddrPort, 1), last: make([]netip.Addr, 1), looked: make([]time.Duration, 1),
		core: discipline.New(discipline.Config{Sources: []discipline.SourceConfig{{Name: "pool", MinPoll: 6, MaxPoll: 10}}}, discipline.Reading{Clock: start, Raw: raw}),
	}
	hear := func(at time.Duration, from netip.Addr) int {
		k.hear(heard{from: from, packet: ntp.Packet{Stratum: 2}, sample: discipline.Sample{
			Raw: at, Server: start.Add(at - raw), Precision: 1, Stratum: 2, Delay: time.Millisecond}})
		return k.core.Sources(discipline.Reading{Clock: start.Add(at - raw), Raw: at})[0].Samples
	}
	if k.where(0, raw).IsValid() {
		t.Error("the address is known before anybody answered")
	}
	for i := range 5 {
		hear(raw+time.Duration(i)*time.Minute, first)
	}
	if at := k.where(0, raw+23*time.Hour); at != netip.AddrPortFrom(first, 123) {
		t.Errorf("asked at %v within the day", at)
	}
	if n := hear(raw+5*time.Minute, first); n < 3 {
		t.Errorf("no line through six samples of one server: %d", n)
	}
	if k.where(0, raw+24*time.Hour).IsValid() {
		t.Error("the name is not looked up after a day")
	}
	if n := hear(raw+6*time.Minute, second); n != 0 {
		t.Errorf("a line through %d samples of two servers", n)
	}
	if at := k.where(0, raw+25*time.Hour); at != netip.AddrPortFrom(second, 123) {
		t.Errorf("asked at %v, want the other server", at)
	}
}

// Two that follow each other believe in whatever they drift to.
func TestSourceThatFollowsUsIsNotFollowed(t *testing.T) {
	us := ntp.Reference{10, 1, 0, 1}
	for _, test := range []struct {
		packet ntp.Packet
		want   discipline.State
	}{
		{ntp.Packet{Stratum: 3, ReferenceID: us}, discipline.Unusable},
		{ntp.Packet{Stratum: 3, ReferenceID: ntp.Reference{192, 0, 2, 7}}, discipline.Leading},
		{ntp.Packet{Stratum: 1, ReferenceID: us}, discipline.Leading}, // letters, not an address
	} {
		const raw = 5 * time.Hour
		k := &keeper{
			server: &Server{log: slog.New(slog.DiscardHandler)}, set: &settings{self: []ntp.Reference{us}}, names: []string{"192.0.2.1:123"},
			addrs: make([]netip.AddrPort, 1), last: make([]netip.Addr, 1), looked: make([]time.Duration, 1),
			core: discipline.New(discipline.Config{Sources: []discipline.SourceConfig{{Name: "source", MinPoll: 2, MaxPoll: 2}}}, discipline.Reading{Clock: start, Raw: raw}),
		}
		at := time.Duration(raw)
		for range 8 {
			k.core.Step(discipline.Reading{Clock: start.Add(at - raw), Raw: at})
			k.hear(heard{from: netip.MustParseAddr("192.0.2.1"), packet: test.packet, sample: discipline.Sample{
				Raw: at, Server: start.Add(at - raw), Precision: 1, Stratum: test.packet.Stratum, Delay: time.Millisecond}})
			at += 4 * time.Second
		}
		now := discipline.Reading{Clock: start.Add(at - raw), Raw: at}
		k.core.Step(now)
		if got := k.core.Sources(now)[0].State; got != test.want {
			t.Errorf("stratum %d below %v: %v, want %v", test.packet.Stratum, test.packet.ReferenceID, got, test.want)
		}
	}
}

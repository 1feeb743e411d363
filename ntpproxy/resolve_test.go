package ntpproxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// resolving is a keeper of one named source whose look-ups a test answers.
func resolving(t *testing.T) *keeper {
	t.Helper()
	s := &Server{log: slog.New(slog.DiscardHandler)}
	k := &keeper{
		server: s, set: &settings{}, names: []string{"pool.example.org:123"}, heard: make(chan heard, 100),
		addrs: make([]netip.AddrPort, 1), last: make([]netip.Addr, 1), looked: make([]time.Duration, 1),
		core: discipline.New(discipline.Config{Sources: []discipline.SourceConfig{{Name: "pool", MinPoll: 6, MaxPoll: 10}}}, discipline.Reading{Clock: start, Raw: raw5}),
	}
	s.resolve = func(context.Context, string, string) ([]netip.Addr, error) {
		return nil, errors.New("no resolver answers")
	}
	return k
}

const raw5 = 5 * time.Hour

// found gives the keeper what a look-up found; none: it failed.
func (k *keeper) found(t *testing.T, raw time.Duration, addrs ...string) {
	t.Helper()
	h := heard{generation: k.generation, lookup: true, raw: raw, err: errors.New("no resolver answers")}
	for _, a := range addrs {
		h.found, h.err = append(h.found, netip.MustParseAddrPort(a+":123")), nil
	}
	k.take(ended(t), h)
}

// answer gives the keeper a source's answer, or none.
func (k *keeper) answer(t *testing.T, raw time.Duration, answers bool) {
	t.Helper()
	h := heard{generation: k.generation, at: k.addrs[0], from: k.addrs[0].Addr(), packet: ntp.Packet{Stratum: 2},
		sample: discipline.Sample{Raw: raw, Server: start.Add(raw - raw5), Precision: 1, Stratum: 2, Delay: time.Millisecond}}
	if !answers {
		h.err = context.DeadlineExceeded
	}
	k.take(ended(t), h)
}

// ended is a context that has ended: nobody is really asked.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func (k *keeper) want(t *testing.T, what, addr string) {
	t.Helper()
	want := netip.AddrPort{}
	if addr != "" {
		want = netip.MustParseAddrPort(addr + ":123")
	}
	if k.addrs[0] != want {
		t.Errorf("%s: asked at %v, want %v", what, k.addrs[0], want)
	}
}

func TestAnotherAddressOfANameIsAskedWhenOneIsSilent(t *testing.T) {
	k := resolving(t)
	k.found(t, raw5, "192.0.2.1", "192.0.2.2", "192.0.2.3")
	k.want(t, "at first", "192.0.2.1")
	k.answer(t, raw5, false)
	k.want(t, "the first never answered", "192.0.2.2")
	k.take(ended(t), heard{generation: k.generation, at: netip.MustParseAddrPort("192.0.2.1:123"), err: context.DeadlineExceeded})
	k.want(t, "a second request to the first failed too", "192.0.2.2")
	k.answer(t, raw5+1, true)
	for i := range 3 {
		k.answer(t, raw5+2, false)
		k.answer(t, raw5+3, false)
		k.want(t, "two answers were lost", "192.0.2.2")
		if i < 2 {
			k.answer(t, raw5+4, true)
		}
	}
	k.answer(t, raw5+5, false)
	k.want(t, "three requests in a row had no answer", "192.0.2.3")
	k.answer(t, raw5+6, false)
	k.want(t, "round the list", "192.0.2.1")
	k.answer(t, raw5+7, false)
	k.want(t, "all were silent, the name is looked up", "")
	k.found(t, raw5+8, "192.0.2.1", "192.0.2.2")
	k.want(t, "found again, the one that answered once is not the last that was given up", "192.0.2.2")
}

func TestAddressThatAnsweredStaysWhenTheLookUpFails(t *testing.T) {
	k := resolving(t)
	k.found(t, raw5, "192.0.2.1")
	k.answer(t, raw5, true)
	for range patience {
		k.answer(t, raw5+1, false)
	}
	k.want(t, "it fell silent", "")
	k.found(t, raw5+2)
	k.want(t, "the resolvers are silent too", "192.0.2.1")
	k.answer(t, raw5+3, true)
	day := raw5 + 4 + lookAgain
	if k.where(0, day).IsValid() {
		t.Error("the name is not looked up after a day")
	}
	k.found(t, day)
	k.want(t, "the daily look-up fails", "192.0.2.1")
	if !k.where(0, day+lookRetry-1).IsValid() || k.where(0, day+lookRetry).IsValid() {
		t.Error("the next look-up is not an hour later")
	}
	k.found(t, day+lookRetry, "192.0.2.7", "192.0.2.1")
	k.want(t, "its name leads to it still", "192.0.2.1")
	k.addrs[0] = netip.AddrPort{}
	k.found(t, day+2*lookAgain, "192.0.2.7", "192.0.2.8")
	k.want(t, "it was taken out of its name", "192.0.2.7")
}

// The look-ups of a list's names are apart by design, and so are those that are
// tried again.
func TestLookUpOfAnyNameThatFailsIsTriedAgainAfterAnHour(t *testing.T) {
	for _, i := range []int{0, 1, 2, 15} {
		k := resolving(t)
		k.names, k.addrs = slices.Repeat(k.names, 16), make([]netip.AddrPort, 16)
		k.last, k.looked = make([]netip.Addr, 16), make([]time.Duration, 16)
		k.last[i] = netip.MustParseAddr("192.0.2.1")
		day := raw5 + lookAgain
		if k.where(i, day).IsValid() {
			t.Fatalf("source %d: the name is not looked up after a day", i)
		}
		k.take(ended(t), heard{source: i, lookup: true, raw: day, err: errors.New("no resolver answers")})
		if !k.where(i, day+lookRetry-1).IsValid() || k.where(i, day+lookRetry).IsValid() {
			t.Errorf("source %d: the next look-up is not an hour later", i)
		}
	}
}

// Who denies us is not asked again while its name leads elsewhere too.
func TestAnotherAddressIsAskedWhenOneDeniesUs(t *testing.T) {
	k := resolving(t)
	k.found(t, raw5, "192.0.2.1", "192.0.2.2")
	k.answer(t, raw5, true)
	kiss := func(code string) {
		h := heard{generation: k.generation, at: k.addrs[0], from: k.addrs[0].Addr(), err: &ntp.KissError{Code: ntp.Reference([]byte(code))}}
		k.take(ended(t), h)
	}
	kiss("RATE")
	k.want(t, "it wants to be asked more rarely", "192.0.2.1")
	kiss("DENY")
	k.want(t, "it denies us", "192.0.2.2")
	kiss("DENY")
	k.want(t, "both do: the name is looked up", "")
	k.found(t, raw5+1, "192.0.2.2", "192.0.2.3")
	k.want(t, "found again", "192.0.2.3")
}

// What an earlier look-up found is good enough for an hour when the resolvers are
// silent and the address that answered denies us. It fails if that hour is counted
// only where the address that answered is asked on.
func TestLookUpThatFailsIsTriedAgainAfterAnHourThoughAnotherAddressIsAsked(t *testing.T) {
	k := resolving(t)
	k.found(t, raw5, "192.0.2.1", "192.0.2.2")
	k.answer(t, raw5, true)
	day := raw5 + lookAgain
	k.refusedBy(0, k.addrs[0], day)
	k.want(t, "it denies us", "192.0.2.2")
	if k.where(0, day).IsValid() {
		t.Fatal("the name is not looked up after a day")
	}
	k.found(t, day)
	k.want(t, "the daily look-up fails", "192.0.2.2")
	if !k.where(0, day+lookRetry-1).IsValid() || k.where(0, day+lookRetry).IsValid() {
		t.Error("the next look-up is not an hour later")
	}
}

// One request that was lost while the name is looked up says nothing.
func TestLookUpThatIsUnderWayDecidesWhoIsAsked(t *testing.T) {
	k := resolving(t)
	k.found(t, raw5, "192.0.2.1", "192.0.2.2")
	k.answer(t, raw5, true)
	k.addrs[0] = netip.AddrPort{} // the day is over
	k.take(ended(t), heard{generation: k.generation, at: netip.MustParseAddrPort("192.0.2.1:123"), err: context.DeadlineExceeded})
	k.want(t, "a request to where it answered is lost meanwhile", "")
	k.found(t, raw5+1, "192.0.2.2", "192.0.2.1")
	k.want(t, "its name leads to it still", "192.0.2.1")
}

// A look-up is not the exchange: it has its own time, one is under way at most,
// and the source is asked where it answered meanwhile.
func TestSlowResolverHoldsUpNobody(t *testing.T) {
	k := resolving(t)
	var looks atomic.Int64
	answer := make(chan struct{})
	k.server.resolve = func(ctx context.Context, network, host string) ([]netip.Addr, error) {
		looks.Add(1)
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) < 15*time.Second || time.Until(deadline) > lookTimeout {
			t.Errorf("the resolvers have until %v: a dead one alone takes 5 s", deadline)
		}
		if network != "ip" || host != "pool.example.org" {
			t.Errorf("looked up: %s %s", network, host)
		}
		<-answer
		return []netip.Addr{netip.MustParseAddr("127.0.0.9")}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 5 {
		k.send(ctx, 0, raw5+time.Duration(i)*time.Minute)
	}
	close(answer)
	h := <-k.heard
	if n := looks.Load(); n != 1 || !h.lookup {
		t.Fatalf("%d look-ups at once; heard %+v", n, h)
	}
	k.names[0] = "pool.example.org:1" // nobody answers there
	h.found = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.9:1")}
	k.take(ctx, h)
	if h = <-k.heard; h.at != netip.MustParseAddrPort("127.0.0.9:1") || h.err == nil {
		t.Errorf("the request that waited: %+v", h)
	}
	cancel()
	k.asking.Wait()
}

func TestFamiliesAreTriedInTurn(t *testing.T) {
	for text, want := range map[string]string{
		"2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2": "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2",
		"192.0.2.1 2001:db8::1 2001:db8::2":           "192.0.2.1 2001:db8::1 2001:db8::2",
		"192.0.2.1 ::ffff:192.0.2.1 192.0.2.2":        "192.0.2.1 192.0.2.2",
		"2001:db8::1":                                 "2001:db8::1",
	} {
		var addrs []netip.Addr
		for _, a := range strings.Fields(text) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		var got []string
		for _, a := range inTurn(addrs) {
			got = append(got, a.String())
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}

// The first address of a name is dead, as IPv6 behind a filter is: the clock is
// kept by the second.
func TestNameWhoseFirstAddressIsDeadIsASource(t *testing.T) {
	_, port, _ := strings.Cut(newFixture(t, testCluster(t), "127.0.0.1:0").serve(t).String(), ":")
	c := newFakeClock(t, -time.Second, 0)
	f := keeping(t, c, keepDiscipline, "pool.example.org:"+port)
	f.server.resolve = func(context.Context, string, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.77"), netip.MustParseAddr("127.0.0.1")}, nil
	}
	f.serve(t)
	eventually(t, "the clock is kept", func() bool {
		k := f.server.Kept()
		return k != nil && k.Updates > 3 && c.off(t).Abs() < 10*time.Millisecond
	})
}

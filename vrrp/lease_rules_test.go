package vrrp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/kernel/link"
	"holdfast/internal/state"
	"holdfast/lab"
)

// asking is a lease that is wanted and has just asked for what stands at index.
func asking(t *testing.T, record leaseRecord, index uint64, now time.Time) *lease {
	t.Helper()
	l := &lease{node: "a", run: "a1", ttl: simTTL}
	l.step(leaseEvent{kind: leaseSeen, record: record, index: index}, now)
	actions := l.step(leaseEvent{kind: leaseWant}, now)
	if len(actions) != 1 || actions[0].kind != leasePropose || actions[0].index != index {
		t.Fatalf("it asks for %+v where the record of %d stands", actions, index)
	}
	return l
}

// What another waits for began when the record was written, which is before the
// answer is here: so its holder counts from when it asked.
func TestALeaseCountsFromWhenItWasAskedFor(t *testing.T) {
	asked := leaseEpoch
	for _, test := range []struct {
		answered time.Duration
		granted  bool
	}{
		{time.Millisecond, true}, {time.Second, true}, {2499 * time.Millisecond, true},
		{2500 * time.Millisecond, false}, {time.Hour, false},
	} {
		l := asking(t, leaseRecord{}, 0, asked)
		var until time.Time
		for _, a := range l.step(leaseEvent{kind: leaseAnswer, index: 11}, asked.Add(test.answered)) {
			if a.kind == leaseGrant {
				until = a.until
			}
		}
		want := time.Time{}
		if test.granted {
			want = asked.Add(2500 * time.Millisecond) // 5/6 of 3 s
		}
		if !until.Equal(want) || l.held() != test.granted {
			t.Errorf("answered after %v: granted until %v, want %v", test.answered, until.Sub(asked), want.Sub(asked))
		}
	}
}

// A renewal is asked for at a quarter of the TTL, counted from when the last one
// was, so that three more can fail before the addresses must go.
func TestARenewalIsDueAtAQuarterOfTheLease(t *testing.T) {
	l := asking(t, leaseRecord{}, 0, leaseEpoch)
	l.step(leaseEvent{kind: leaseAnswer, index: 11}, leaseEpoch.Add(100*time.Millisecond))
	if at, ok := l.next(); !ok || !at.Equal(leaseEpoch.Add(simTTL/4)) {
		t.Errorf("due at %v, want %v", at.Sub(leaseEpoch), simTTL/4)
	}
	actions := l.step(leaseEvent{kind: leaseTick}, leaseEpoch.Add(simTTL/4))
	if len(actions) != 1 || actions[0].kind != leasePropose || actions[0].index != 11 || actions[0].record.Free || actions[0].record.Count != 2 {
		t.Errorf("it asks for %+v", actions)
	}
}

// How long a stranger's record is left alone is said by the record, not by what
// this node would write.
func TestAnothersLeaseIsWaitedForByItsOwnTTL(t *testing.T) {
	l := &lease{node: "a", run: "a1", ttl: simTTL}
	l.step(leaseEvent{kind: leaseWant}, leaseEpoch)
	l.step(leaseEvent{kind: leaseSeen, record: leaseRecord{Node: "b", Run: "b1", TTL: 10 * time.Second, Count: 4}, index: 9}, leaseEpoch)
	if at, ok := l.next(); !ok || at.Sub(leaseEpoch) != 20*time.Second {
		t.Errorf("taken after %v, want 20 s", at.Sub(leaseEpoch))
	}
	// It is renewed, and the wait begins anew.
	l.step(leaseEvent{kind: leaseSeen, record: leaseRecord{Node: "b", Run: "b1", TTL: 10 * time.Second, Count: 5}, index: 12}, leaseEpoch.Add(19*time.Second))
	if at, ok := l.next(); !ok || at.Sub(leaseEpoch) != 39*time.Second {
		t.Errorf("after a renewal taken at %v, want 39 s", at.Sub(leaseEpoch))
	}
}

// slowStore applies commands in order, the next one after another's if there is one.
type slowStore struct {
	*state.Store
	mu     sync.Mutex
	index  uint64
	before state.Command // another's, which comes first
	asked  []state.PutDocument
}

func (s *slowStore) Propose(_ context.Context, c state.Command) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, c.(state.PutDocument))
	if s.before != nil {
		s.index++
		if err := s.Apply(s.index, s.before); err != nil {
			return 0, fmt.Errorf("the other's: %w", err)
		}
		s.before = nil
	}
	s.index++
	return s.index, s.Apply(s.index, c)
}

// Two that ask at once: the store lets one have it, since each says what it saw.
func TestTheFenceWritesOverWhatItSawAndNothingElse(t *testing.T) {
	store := &slowStore{Store: state.New(), index: 40}
	store.Touch(time.Now().Add(time.Hour)) // up to date for as long as the test lasts, and so is a lease
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	f := newFence("a", Store{Reader: store, Proposer: store})
	f.log, f.metrics = slog.New(slog.DiscardHandler), m
	var granted int
	f.granted, f.revoked, f.reachable = func(string) { granted++ }, func(string, string) {}, func(string, bool) {}
	write := func(r leaseRecord, index uint64) state.Command {
		return state.PutDocument{Verb: state.CAS, Document: state.Document{Kind: KindLease, Key: "web", Value: r.encode(), ModifyIndex: index}}
	}
	other := leaseRecord{Node: "b", Run: "b1", TTL: maxLease, Count: 1}
	store.before = write(other, 0)
	f.set(map[string]time.Duration{"web": maxLease})
	f.look()
	f.want("web", true)
	f.look()
	f.wait()
	if report := f.report("web"); granted != 0 || report.Held || report.Holder != "b" {
		t.Fatalf("the other was first: granted %d times, %+v", granted, report)
	}
	// The other gives it back, and it is taken where that record stands.
	store.mu.Lock()
	store.index++
	given := store.index
	other.Count, other.Free = 2, true
	err = store.Apply(given, write(other, given-2)) // the refused one was between
	store.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.leases["web"].retryAt = time.Time{} // what follows does not wait for it
	f.mu.Unlock()
	f.look()
	f.wait()
	if report := f.report("web"); granted != 1 || !report.Held || report.Holder != "a" {
		t.Errorf("it was given back: granted %d times, %+v", granted, report)
	}
	if last := store.asked[len(store.asked)-1]; last.Verb != state.CAS || last.Document.ModifyIndex != given {
		t.Errorf("it wrote %s over %d, want cas over %d", last.Verb, last.Document.ModifyIndex, given)
	}
}

// What the kernel was told of the end of a lease must move with it: else it takes
// the address from who has it.
func TestARenewedLeaseIsTheKernelsToo(t *testing.T) {
	if testing.Short() {
		t.Skip("it needs a host of the lab")
	}
	bed := lab.NewTest(t, lab.Options{Networks: []string{"lan"}})
	host, err := bed.AddHost("n1", lab.On("lan", "10.9.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	var handle *link.Handle
	if err := host.Do(func() (err error) { handle, err = link.Open(); return err }); err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	const index = 2 // of the only interface besides lo
	left := func() int {
		t.Helper()
		out, err := host.Run(t.Context(), "ip", "-j", "addr", "show")
		if err != nil {
			t.Fatal(err)
		}
		var links []struct {
			Index int `json:"ifindex"`
			Addrs []struct {
				Local string `json:"local"`
				Valid int    `json:"valid_life_time"`
			} `json:"addr_info"`
		}
		if err := json.Unmarshal([]byte(out), &links); err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			for _, a := range l.Addrs {
				if a.Local == "10.9.0.100" {
					return a.Valid
				}
			}
		}
		return 0
	}
	prefix := netip.MustParsePrefix("10.9.0.100/32")
	a := &applier{all: &appliers{handle: handle}, link: link.Link{Index: index}}
	h := &holding{
		router: "web", log: slog.New(slog.DiscardHandler), applied: newApplied(),
		fenced: true, until: bootNow().Add(30 * time.Second), prefixes: []netip.Prefix{prefix},
	}
	if err := h.put(a, prefix); err != nil {
		t.Fatal(err)
	}
	h.applied.add(index, prefix)
	if got := left(); got < 1 || got > 30 {
		t.Errorf("lent for 30 s, the kernel has it for %d", got)
	}
	h.renew(a, bootNow().Add(300*time.Second))
	if got := left(); got < 200 || got > 300 {
		t.Errorf("renewed for 300 s, the kernel has it for %d", got)
	}
}

// The guard acts after the agent and before another may have the address.
func TestTheGuardIsToldOfTheEndOfTheLeaseAndLittleMore(t *testing.T) {
	in := instanceOf(Router{Name: "web", Fenced: true, Held: []netip.Prefix{netip.MustParsePrefix("10.9.0.100/32")}})
	in.spot.link = link.Link{Index: 2, Name: "eth0"}
	in.leasedUntil = afterBoot(time.Hour)
	word := (&loop{}).leaseWord(in)
	if late := word.Until - time.Hour; late <= 0 || late >= minLease/leaseMargin {
		t.Errorf("the guard acts %v after the agent, and the shortest lease has %v left then", late, minLease/leaseMargin)
	}
	if len(word.Fenced) != 1 || word.Fenced[0].Index != 2 || word.Router != "web" {
		t.Errorf("it is told %+v", word)
	}
}

// A process that stood still until its lease was over: another may have the address.
func TestNothingIsSaidOfAnAddressWhoseLeaseIsOver(t *testing.T) {
	h := &holding{router: "web", fenced: true, until: bootNow().Add(-time.Millisecond), prefixes: []netip.Prefix{netip.MustParsePrefix("10.9.0.100/32")}}
	h.bursts = 3
	h.burst(&applier{}, time.Now()) // it has no socket to say it with
	if h.bursts != 0 || !h.next.IsZero() {
		t.Errorf("%d more to come, the next at %v", h.bursts, h.next)
	}
}

// What no leader has confirmed for a TTL is no word of the store.
func TestAStoreThatIsBehindByATTLIsNotReachable(t *testing.T) {
	for age, want := range map[time.Duration]bool{maxLease / 2: true, maxLease + time.Second: false} {
		store := state.New()
		store.Touch(time.Now().Add(-age))
		f := newFence("a", Store{Reader: store})
		var said []bool
		f.reachable = func(_ string, up bool) { said = append(said, up) }
		f.set(map[string]time.Duration{"web": maxLease})
		if f.look(); len(said) != 1 || said[0] != want {
			t.Errorf("confirmed %v ago: reachable %v, want %v", age, said, want)
		}
	}
}

package discovery

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

// leased is a store with one session of 10 s on key "lock", and a clock.
type leased struct {
	t     *testing.T
	store *state.Store
	now   time.Time
	index uint64
}

func newLeased(t *testing.T) *leased {
	l := &leased{t: t, store: state.New(), now: time.Unix(1000, 0)}
	l.apply(state.Register{Node: state.Node{Name: "n1", Address: netip.MustParseAddr("10.1.0.1")}})
	l.apply(state.CreateSession{Session: state.Session{ID: "s", Node: "n1", TTL: 10 * time.Second, LockDelay: 5 * time.Second}})
	l.apply(state.CreateSession{Session: state.Session{ID: "for-ever", Node: "n1"}})
	l.apply(state.KV{Verb: state.Acquire, Entry: state.Entry{Key: "lock", Session: "s"}})
	return l
}

func (l *leased) apply(c state.Command) {
	l.t.Helper()
	l.index++
	if err := l.store.Apply(l.index, c); err != nil {
		l.t.Fatal(err)
	}
}

// expect moves the clock and says what must be due then, and in how long the
// next will be (0: nothing is waited for).
func (l *leased) expect(m *leases, pass time.Duration, next time.Duration, want ...state.Command) []state.Command {
	l.t.Helper()
	l.now = l.now.Add(pass)
	due, at, ok := m.observe(l.now, l.store.Snapshot())
	if d := cmp.Diff(want, due); d != "" {
		l.t.Errorf("at %s: due (-want +got):\n%s", l.now.Sub(time.Unix(1000, 0)), d)
	}
	if ok != (next != 0) || ok && at.Sub(l.now) != next {
		l.t.Errorf("at %s: next in %s (%v), not in %s", l.now.Sub(time.Unix(1000, 0)), at.Sub(l.now), ok, next)
	}
	return due
}

func TestASessionThatIsNotRenewedEndsAfterTwoTTLs(t *testing.T) {
	l, m := newLeased(t), newLeases()
	l.expect(m, 0, 20*time.Second)
	l.expect(m, 15*time.Second, 5*time.Second)
	l.apply(state.RenewSession{ID: "s"})
	l.expect(m, 0, 20*time.Second)
	l.expect(m, 20*time.Second-1, 1)
	for _, c := range l.expect(m, 1, 0, state.DestroySession{ID: "s", RenewIndex: 5}) {
		l.apply(c)
	}
	l.expect(m, 0, 5*time.Second) // the lock-delay
	for _, c := range l.expect(m, 5*time.Second, 0, state.EndDelay{Key: "lock", Index: 6}) {
		l.apply(c)
	}
	l.expect(m, time.Hour, 0)
}

func TestANewLeaderGivesEverySessionItsFullTime(t *testing.T) {
	l, m := newLeased(t), newLeases()
	l.expect(m, 0, 20*time.Second)
	l.now = l.now.Add(19 * time.Second)
	l.expect(newLeases(), 0, 20*time.Second)
	m.forget()
	l.expect(m, 0, 20*time.Second)
}

func TestALeaderThatWasPausedDoesNotEndASessionRenewedMeanwhile(t *testing.T) {
	l, m := newLeased(t), newLeases()
	l.expect(m, 0, 20*time.Second)
	due := l.expect(m, time.Minute, 0, state.DestroySession{ID: "s", RenewIndex: 2})
	l.apply(state.RenewSession{ID: "s"}) // with another leader, before the write of this one arrives
	l.apply(due[0])
	if s, _ := l.store.Snapshot().Session(nil, "s"); s == nil {
		t.Fatal("the session is gone")
	}
}

// The whole: an agent that leads ends a session of 100 ms, and then its
// lock-delay; one that does not lead leaves both alone.
func TestTheLeaderEndsExpiredSessionsAndLockDelays(t *testing.T) {
	b := newBed(t)
	h := b.start(b.config(1))
	b.lead("another")
	must := func(c state.Command) {
		t.Helper()
		if _, err := b.Propose(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	must(state.Register{Node: state.Node{Name: "outside", Address: netip.MustParseAddr("10.1.0.1")}})
	must(state.CreateSession{Session: state.Session{ID: "s", Node: "outside", TTL: 100 * time.Millisecond, LockDelay: 50 * time.Millisecond}})
	must(state.KV{Verb: state.Acquire, Entry: state.Entry{Key: "lock", Session: "s"}})
	gone := func() bool { s, _ := h.store.Snapshot().Session(nil, "s"); return s == nil }
	began := time.Now()
	for time.Since(began) < 300*time.Millisecond {
		if gone() {
			t.Fatal("an agent that does not lead ended a session")
		}
		<-time.After(10 * time.Millisecond)
	}
	b.lead("fbservice1")
	eventually(t, "the session ends", gone)
	eventually(t, "its lock-delay ends", func() bool { return len(h.store.Snapshot().LockDelays()) == 0 })
}

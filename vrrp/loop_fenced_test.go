package vrrp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/kernel/link"
	"holdfast/internal/state"
	"holdfast/lab"
)

// fencedBed is a session on a host of its own whose loop the test turns, with a
// store that the test has in hand, too. Its methods give errors: they run in the
// host's network namespace, where a test can't be ended.
type fencedBed struct {
	*session
	store *state.Store
	ran   *recorder // of the hooks

	mu    sync.Mutex
	index uint64 // of the store
	holds []bool // as was told, in order
}

// fencedAddr is what the router holds under its lease.
var fencedAddr = netip.MustParsePrefix("10.9.0.100/32")

// fencedSettings are those of a router whose lease outlasts any test.
func fencedSettings() RouterSettings {
	return RouterSettings{
		Router: Router{
			Name: "web", Interface: "eth0", Version: 3, VRID: 51, Priority: 100, Interval: 100 * time.Millisecond, Preempt: true,
			Source: netip.MustParseAddr("10.9.0.1"), Advertised: []netip.Addr{fencedAddr.Addr()}, Held: []netip.Prefix{fencedAddr},
			Fenced: true, Tracks: []Track{{Name: storeTrack("web")}},
		},
		Home: netip.MustParseAddr("10.9.0.1"), Network: "lan", MinTTL: 255, Lease: maxLease, Order: []string{"n1", "n2"},
		Hooks: Hooks{Notify: []string{"notify"}},
	}
}

// onFencedBed runs f with a session of one fenced router, which has its lease
// and its address.
func onFencedBed(t *testing.T, f func(b *fencedBed) error) {
	t.Helper()
	host, err := lab.NewTest(t, lab.Options{Networks: []string{"lan"}}).AddHost("n1", lab.On("lan", "10.9.0.1/24"))
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Do(func() error { return newFencedBed(t, f) }); err != nil {
		t.Error(err)
	}
}

func newFencedBed(t *testing.T, f func(b *fencedBed) error) (err error) {
	b := &fencedBed{store: state.New(), ran: &recorder{}}
	b.store.Touch(time.Now().Add(time.Hour)) // up to date for as long as the test lasts
	s, err := New(Config{RunDir: t.TempDir(), Node: "n1", Settings: Settings{Routers: []RouterSettings{fencedSettings()}}}, Deps{
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: health.NewBoard(time.Now, nil, nil),
		Commands: b.ran, Store: Store{Reader: b.store, Proposer: b},
		Holds: func(_ string, holds bool) { b.holds = append(b.holds, holds) },
	})
	if err != nil {
		return err
	}
	if b.session, err = s.open(); err != nil {
		return err
	}
	defer b.close()
	b.guard.argv = []string{"none"} // it remembers what a guard would be told
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { b.fence.follow(ctx) })
	defer following.Wait()
	defer stop()
	if err := b.turnUntil("the address is here", func() bool { return b.has(fencedAddr) && b.router().told == Active }); err != nil {
		return err
	}
	return f(b)
}

func (b *fencedBed) router() *instance { return b.loop.instances[0] }

// Propose carries a command out at once.
func (b *fencedBed) Propose(_ context.Context, command state.Command) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.index++
	return b.index, b.store.Apply(b.index, command)
}

// record is the lease as the store has it.
func (b *fencedBed) record() (record leaseRecord, index uint64) {
	doc, _ := b.store.Snapshot().Document(nil, KindLease, "web")
	if doc == nil {
		return leaseRecord{}, 0
	}
	record, _ = parseLeaseRecord(doc.Value)
	return record, doc.ModifyIndex
}

// another writes the lease as another node does: it takes what is free, or
// gives it back.
func (b *fencedBed) another(free bool) error {
	was, index := b.record()
	if !was.Free && was.Node != "n2" {
		return fmt.Errorf("the lease is %+v, not free", was)
	}
	record := leaseRecord{Node: "n2", Run: "another", TTL: maxLease, Count: was.Count + 1, Free: free}
	_, err := b.Propose(context.Background(), state.PutDocument{Verb: state.CAS, Document: state.Document{
		Kind: KindLease, Key: "web", Value: record.encode(), ModifyIndex: index,
	}})
	return err
}

// has tells whether the host has an address.
func (b *fencedBed) has(prefix netip.Prefix) bool {
	there, err := b.handle.Addrs()
	return err == nil && slices.ContainsFunc(there, func(a link.Addr) bool { return a.Prefix == prefix })
}

// fencedPatience is how long these tests wait for what must come; how soon it has
// to, others measure. It is less than what another's lease is left alone for.
const fencedPatience = maxLease

// await waits until something is so. The loop stands still meanwhile.
func (b *fencedBed) await(what string, is func() bool) error { return b.poll(what, is, func() {}) }

// hearUntil lets the loop hear what it is told, with its clock standing still,
// until something is so: a Backup stays one.
func (b *fencedBed) hearUntil(what string, is func() bool) error { return b.poll(what, is, b.hear) }

// turnUntil lets the loop go on until something is so.
func (b *fencedBed) turnUntil(what string, is func() bool) error {
	return b.poll(what, is, func() {
		b.hear()
		b.loop.tick(0)
		b.loop.resolve(time.Now())
	})
}

func (b *fencedBed) hear() {
	for _, f := range b.loop.mail.take() {
		f()
	}
}

func (b *fencedBed) poll(what string, is func() bool, turn func()) error {
	for deadline := time.Now().Add(fencedPatience); !is(); turn() {
		if time.Now().After(deadline) {
			record, _ := b.record()
			return fmt.Errorf("not within %v: %s; the lease is %+v", fencedPatience, what, record)
		}
		if _, err := b.loop.poller.Wait(time.Now().Add(10 * time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

func (b *fencedBed) isFree() bool {
	record, _ := b.record()
	return record.Free
}

// carriedOut waits until the applier has done what it was told so far.
func (b *fencedBed) carriedOut() error {
	done := make(chan struct{})
	b.router().applier.withdrawFenced("nobody", func(bool) { close(done) })
	select {
	case <-done:
		return nil
	case <-time.After(fencedPatience):
		return errors.New("the applier does nothing")
	}
}

func (b *fencedBed) reload(change func(*RouterSettings)) {
	settings := fencedSettings()
	change(&settings)
	b.loop.reconfigure([]RouterSettings{settings}, time.Now())
}

// TestReloadOfTheVRIDDoesNotKeepTheLeaseThatWasGivenBack: another VRID under the
// same name is another virtual router. The old one gives its lease back and
// another node takes it; the new one must ask for its own.
func TestReloadOfTheVRIDDoesNotKeepTheLeaseThatWasGivenBack(t *testing.T) {
	onFencedBed(t, func(b *fencedBed) error {
		b.reload(func(s *RouterSettings) { s.VRID = 52 })
		if err := b.hearUntil("the lease is given back", b.isFree); err != nil {
			return err
		}
		if err := b.another(false); err != nil {
			return err
		}
		if err := b.turnUntil("the new router is Active", func() bool { return b.router().state == Active }); err != nil {
			return err
		}
		if err := b.carriedOut(); err != nil {
			return err
		}
		if record, _ := b.record(); b.has(fencedAddr) || len(b.guard.leases) > 0 {
			return fmt.Errorf("the lease is %s's; the address is here: %v; the guard has %v", record.Node, b.has(fencedAddr), b.guard.leases)
		}
		if want := []bool{true, false}; !slices.Equal(b.holds, want) {
			return fmt.Errorf("others are told that it is held: %v, want %v", b.holds, want)
		}
		if err := b.another(true); err != nil {
			return err
		}
		if err := b.turnUntil("the address comes with the lease", func() bool { return b.has(fencedAddr) }); err != nil {
			return err
		}
		want := []string{"BACKUP", "MASTER", "STOP", "BACKUP", "MASTER"}
		if err := b.turnUntil(fmt.Sprintf("hooks are told %v, not %v", want, b.hooked()), func() bool { return slices.Equal(b.hooked(), want) }); err != nil {
			return err
		}
		if want := []bool{true, false, true}; !slices.Equal(b.holds, want) || len(b.guard.leases) != 1 {
			return fmt.Errorf("others are told that it is held: %v, want %v; the guard has %d leases", b.holds, want, len(b.guard.leases))
		}
		return nil
	})
}

// hooked are the states that hooks were told.
func (b *fencedBed) hooked() (states []string) {
	b.ran.mu.Lock()
	defer b.ran.mu.Unlock()
	for _, c := range b.ran.ran {
		states = append(states, c.Argv[3])
	}
	return states
}

// TestReloadPutsNothingUpUnderALeaseThatWasLostMeanwhile: the word that the
// lease is lost is on its way to the loop when a reload gives the router another
// address.
func TestReloadPutsNothingUpUnderALeaseThatWasLostMeanwhile(t *testing.T) {
	onFencedBed(t, func(b *fencedBed) error {
		if err := b.overwrite(); err != nil {
			return err
		}
		lost := func() bool { _, ok := b.fence.valid("web"); return !ok }
		if err := b.await("the lease is another's", lost); err != nil {
			return err
		}
		other := netip.MustParsePrefix("10.9.0.101/32")
		b.reload(func(s *RouterSettings) { s.Held = append(s.Held, other) })
		if err := b.carriedOut(); err != nil {
			return err
		}
		if b.has(other) {
			return errors.New("the new address is here without the lease")
		}
		return b.turnUntil("the old address is gone", func() bool { return !b.has(fencedAddr) && !b.has(other) })
	})
}

// overwrite makes the lease another's, as an admin's restore of the store does.
func (b *fencedBed) overwrite() error {
	_, err := b.Propose(context.Background(), state.PutDocument{Verb: state.Set, Document: state.Document{
		Kind: KindLease, Key: "web", Value: leaseRecord{Node: "n2", Run: "another", TTL: maxLease, Count: 99}.encode(),
	}})
	return err
}

// TestAnAddressThatCouldNotBeRemovedIsRemovedAfterItsAppliersEnd: its router is
// gone from the file, and with the last router of an interface its applier ends.
func TestAnAddressThatCouldNotBeRemovedIsRemovedAfterItsAppliersEnd(t *testing.T) {
	onFencedBed(t, func(b *fencedBed) error {
		if err := b.leaveBehind(); err != nil {
			return err
		}
		b.appliers.handle = b.handle
		if err := b.hearUntil("the lease is given back", b.isFree); err != nil {
			return err
		}
		if b.has(fencedAddr) {
			return errors.New("it is given back with the address here")
		}
		if err := b.hearUntil("what removed it ends", func() bool { return b.applying() == 0 }); err != nil {
			return err
		}
		if len(b.journal.list()) > 0 {
			return fmt.Errorf("the journal has %v", b.journal.list())
		}
		return b.hearUntil("the guard forgets it", func() bool { return len(b.guard.leases) == 0 })
	})
}

// TestALeaseIsGivenBackWhenItsInterfaceIsGone: nothing can be removed there, and
// nothing is left there.
func TestALeaseIsGivenBackWhenItsInterfaceIsGone(t *testing.T) {
	onFencedBed(t, func(b *fencedBed) error {
		eth0 := b.router().spot.link
		if err := b.leaveBehind(); err != nil {
			return err
		}
		b.loop.linkChanged(link.Event{Link: &eth0, Gone: true})
		if err := b.hearUntil("the lease is given back", b.isFree); err != nil {
			return err
		}
		if len(b.guard.leases) > 0 {
			return fmt.Errorf("the guard still has %v", b.guard.leases)
		}
		return nil
	})
}

// leaveBehind takes the router out of the settings while its address can't be
// removed, and waits until its applier has ended.
func (b *fencedBed) leaveBehind() error {
	broken, err := link.Open()
	if err != nil {
		return err
	}
	if err := errors.Join(broken.Close(), b.carriedOut()); err != nil {
		return err
	}
	b.appliers.handle = broken
	b.loop.reconfigure(nil, time.Now())
	if err := b.await("its applier ends", func() bool { return b.applying() == 0 }); err != nil {
		return err
	}
	if !b.has(fencedAddr) || b.isFree() {
		return errors.New("the address was removed, or the lease given back, against all odds")
	}
	return nil
}

// applying is how many appliers run.
func (b *fencedBed) applying() int {
	b.appliers.mu.Lock()
	defer b.appliers.mu.Unlock()
	return len(b.appliers.byIndex)
}

// TestARetriedRemovalLeavesARouterAloneThatNeedsNoLeaseAnyMore: a removal failed,
// and then a reload took the fence away.
func TestARetriedRemovalLeavesARouterAloneThatNeedsNoLeaseAnyMore(t *testing.T) {
	onFencedBed(t, func(b *fencedBed) error {
		b.reload(func(s *RouterSettings) { s.Fenced, s.Tracks = false, nil })
		if err := b.turnUntil("it holds without a lease", func() bool { return b.isFree() && b.router().state == Active && b.has(fencedAddr) }); err != nil {
			return err
		}
		b.loop.removeAgain("web", b.router().applier, 0)
		tried := false
		time.AfterFunc(2*withdrawAgain, func() { b.loop.mail.post(func() { tried = true }) })
		if err := b.turnUntil("it is tried again", func() bool { return tried }); err != nil {
			return err
		}
		if err := b.carriedOut(); err != nil {
			return err
		}
		if !b.has(fencedAddr) {
			return errors.New("the address is gone, and its router is Active")
		}
		return nil
	})
}

// TestWordOfALostLeaseComesTooLateForARouterThatStoodBack: its hooks were told
// where it went; that it is in fault would stay the last word.
func TestWordOfALostLeaseComesTooLateForARouterThatStoodBack(t *testing.T) {
	onFencedBed(t, func(b *fencedBed) error {
		b.loop.step(Event{Kind: Tracked, At: time.Now(), Name: linkTrack("web"), Up: false})
		b.loop.step(Event{Kind: Tracked, At: time.Now(), Name: linkTrack("web"), Up: true})
		if in := b.router(); in.state != Backup {
			return fmt.Errorf("it is %v", in.state)
		}
		b.loop.unleased("web", "on its way since before")
		if in := b.router(); in.told != Backup {
			return fmt.Errorf("hooks were told last that it is %v", in.told)
		}
		return nil
	})
}

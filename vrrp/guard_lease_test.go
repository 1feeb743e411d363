package vrrp

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"holdfast/internal/kernel/link"
)

// fakeAddresses is a kernel that has addresses.
type fakeAddresses struct{ there []link.Addr }

func (f *fakeAddresses) Addrs() ([]link.Addr, error) { return f.there, nil }

func (f *fakeAddresses) Remove(a link.Addr) error {
	f.there = slices.DeleteFunc(f.there, func(b link.Addr) bool { return a.Link == b.Link && a.Prefix == b.Prefix })
	return nil
}

// enforcing is a guard that was told of a lease that is over at 10 s.
func enforcing(t *testing.T) (*guard, *fakeAddresses, link.Addr) {
	t.Helper()
	addr := link.Addr{Link: 2, Prefix: netip.MustParsePrefix("10.9.0.100/32")}
	other := link.Addr{Link: 2, Prefix: netip.MustParsePrefix("10.9.0.1/24")}
	kernel := &fakeAddresses{there: []link.Addr{other, addr}}
	g := &guard{log: slog.New(slog.DiscardHandler), held: map[string]guardWord{}, tenancies: map[string]*tenancy{}, kernel: kernel}
	g.take(guardWord{Op: guardLease, Router: "web", Until: 10 * time.Second,
		Fenced: []fencedAddress{{Index: 2, Name: "eth0", Prefix: addr.Prefix}}})
	return g, kernel, addr
}

func TestGuardRemovesAnAddressAtTheEndOfItsLeaseAndNothingElse(t *testing.T) {
	g, kernel, addr := enforcing(t)
	if again := g.enforce(9 * time.Second); again != time.Second || len(kernel.there) != 2 {
		t.Fatalf("a second before: again in %v, there is %v", again, kernel.there)
	}
	if g.enforce(10 * time.Second); len(kernel.there) != 1 || kernel.there[0] == addr {
		t.Errorf("at the end there is %v", kernel.there)
	}
}

func TestGuardLeavesALeaseThatIsRenewedAlone(t *testing.T) {
	g, kernel, addr := enforcing(t)
	g.take(guardWord{Op: guardLease, Router: "web", Until: 12 * time.Second,
		Fenced: []fencedAddress{{Index: 2, Name: "eth0", Prefix: addr.Prefix}}})
	if g.enforce(11 * time.Second); len(kernel.there) != 2 {
		t.Errorf("a lease until 12 s, at 11 s there is %v", kernel.there)
	}
	g.take(guardWord{Op: guardUnlease, Router: "web"})
	if again := g.enforce(13 * time.Second); again != 0 || len(kernel.there) != 2 {
		t.Errorf("nothing is held any more: again in %v, there is %v", again, kernel.there)
	}
}

// TestGuardRemovesWhatComesBackAfterTheLease: an agent that was stopped between
// its look at the lease and the addition, and goes on later. What it added
// along with a new lease stays.
func TestGuardRemovesWhatComesBackAfterTheLease(t *testing.T) {
	g, kernel, addr := enforcing(t)
	at := 10 * time.Second
	g.enforce(at)
	kernel.there = append(kernel.there, addr)
	for range 2 {
		at += overdueEvery
		g.enforce(at)
	}
	if slices.Contains(kernel.there, addr) {
		t.Errorf("it came back, and stays: %v", kernel.there)
	}
	kernel.there = append(kernel.there, addr)
	at += overdueEvery
	g.enforce(at) // it is seen once, and then its lease is heard of
	g.take(guardWord{Op: guardLease, Router: "web", Until: at + 5*time.Second,
		Fenced: []fencedAddress{{Index: 2, Name: "eth0", Prefix: addr.Prefix}}})
	for range 3 {
		at += overdueEvery
		g.enforce(at)
	}
	if !slices.Contains(kernel.there, addr) {
		t.Error("an address under a new lease was removed")
	}
}

func TestGuardOfADeadProcessRemovesFencedAddressesAtOnce(t *testing.T) {
	g, kernel, addr := enforcing(t)
	if g.evictAll(); slices.Contains(kernel.there, addr) || len(kernel.there) != 1 {
		t.Errorf("there is %v", kernel.there)
	}
}

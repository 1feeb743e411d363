package vrrp

import (
	"net/netip"
	"time"

	"holdfast/internal/kernel/link"
)

// The guard and the leases of fenced routers. It knows until when each address
// may be there; when that is over and nobody said more, the agent stands still,
// and the guard removes the address in its place. From then on it looks again
// and again: an agent that goes on may be about to put it back.

// fencedAddress is an address that is held under a lease.
type fencedAddress struct {
	Index  int          `json:"index"` // of the interface
	Name   string       `json:"interface"`
	Prefix netip.Prefix `json:"prefix"`
}

// overdueEvery is how often the guard looks for an address whose lease is over.
// One that it finds twice in a row is removed: between the two the agent's word
// that it has a new lease may have come.
const overdueEvery = 25 * time.Millisecond

// tenancy is the lease of one router, as the guard was told.
type tenancy struct {
	until     time.Duration // since the boot
	addresses []fencedAddress
	over      bool // it was seen to be over
	found     bool // an address was there at the last look after that
}

// enforce removes the addresses whose lease is over, and says when to look
// again; 0: not before something is said.
func (g *guard) enforce(now time.Duration) (again time.Duration) {
	for router, t := range g.tenancies {
		left := t.until - now
		if left > 0 {
			again = sooner(again, left)
			continue
		}
		if !t.over {
			t.over = true
			g.log.Warn("a lease is over and was not renewed: the process that holds it stands still", "router", router)
			t.found = true // removed at once
		}
		t.found = g.evict(router, t, t.found)
		again = sooner(again, overdueEvery)
	}
	return again
}

// sooner is the shorter of two waits; 0 is for ever.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}

// evict looks for a router's addresses, and removes those that it finds when it
// may. Found: there is one that it did not remove.
func (g *guard) evict(router string, t *tenancy, may bool) (found bool) {
	there, err := g.kernel.Addrs()
	if err != nil {
		g.log.Error("list addresses", "error", err)
		return may
	}
	for _, a := range t.addresses {
		if !onLink(there, a.Index, a.Prefix) {
			continue
		}
		if !may {
			found = true
			continue
		}
		if err := g.kernel.Remove(link.Addr{Link: a.Index, Prefix: a.Prefix}); err != nil {
			g.log.Error("an address whose lease is over was not removed, trying again", "router", router, "address", a.Prefix, "interface", a.Name, "error", err)
			found = true
			continue
		}
		g.log.Warn("removed an address whose lease is over", "router", router, "address", a.Prefix, "interface", a.Name)
	}
	return found
}

// evictAll removes all addresses that are held under a lease: whose process is
// dead can't keep it, and a successor needs one of its own.
func (g *guard) evictAll() {
	for router, t := range g.tenancies {
		for attempt := 0; g.evict(router, t, true) && attempt < withdrawAttempts; attempt++ {
			time.Sleep(overdueEvery)
		}
	}
}

// addresses is what the guard needs of the kernel.
type addresses interface {
	Addrs() ([]link.Addr, error)
	Remove(link.Addr) error
}

package logrelay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestClaimedNamesAreRememberedWithinBounds: whoever claims many, or long ones,
// fills no memory, and each is what it was the first time.
func TestClaimedNamesAreRememberedWithinBounds(t *testing.T) {
	n, relay := testNames(), netip.MustParseAddr("10.1.0.9")
	n.most = 1 << 20
	for i := range 3 * mostClaims {
		claimed := fmt.Sprintf("Forged/%d", i)
		for range 2 {
			if got, want := n.host(relay, []byte(claimed)), fmt.Sprintf("forged_%d", i); got != want {
				t.Fatalf("%q: %q, want %q", claimed, got, want)
			}
		}
		n.host(relay, []byte(strings.Repeat("x", maxName)+claimed))
	}
	if len(n.safe) > mostClaims || len(n.safe) == 0 {
		t.Errorf("%d names are remembered, want %d at most", len(n.safe), mostClaims)
	}
	for name := range n.safe {
		if len(name) > maxName {
			t.Errorf("a name of %d bytes is remembered", len(name))
		}
	}
}

// TestWhoseLineItIsCostsNoAllocation, by a relay, by a node, by this machine.
func TestWhoseLineItIsCostsNoAllocation(t *testing.T) {
	n := testNames()
	for source, claimed := range map[string][]byte{"10.1.0.9": []byte("CN02.example.com"), "10.1.0.31": []byte("cn01"), "127.0.0.1": []byte("cn03")} {
		addr := netip.MustParseAddr(source)
		if allocs := testing.AllocsPerRun(100, func() { n.host(addr, claimed) }); allocs != 0 {
			t.Errorf("%s claims %s: %v allocations", source, claimed, allocs)
		}
	}
}

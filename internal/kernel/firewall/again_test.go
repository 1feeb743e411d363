package firewall

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTablesThatAreReplacedMeanwhileAreLookedAtAgain: an iptables whose chain of
// ours is gone when it is asked what stands in it. It would fail if that were an
// error, which lb makes a condition of.
func TestTablesThatAreReplacedMeanwhileAreLookedAtAgain(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := fmt.Sprintf(`#!/bin/sh
case "$*" in
*--version*) echo "iptables v1.8.9 (nf_tables)" ;;
*"-S HOLDFAST-PRE"*)
	: >%[1]s
	echo "iptables: No chain/target/match by that name." >&2
	exit 1 ;;
*"-t raw -S"*)
	echo "-P PREROUTING ACCEPT"
	[ -e %[1]s ] || echo "-N HOLDFAST-PRE" ;;
esac
`, asked)
	if err := os.WriteFile(filepath.Join(dir, "iptables"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	var restored []string
	f, err := Open(IPTables, func(program string, _ []string, input string) error {
		restored = append(restored, program+" "+input)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	changes, err := f.Set(Rules{Untracked: []Endpoint{{TCP, netip.MustParseAddrPort(virtual)}}})
	if err != nil || len(changes) != 1 || len(restored) != 1 || !strings.Contains(restored[0], "-I PREROUTING 1 -j HOLDFAST-PRE\n") {
		t.Errorf("changes %v, %v; restored %q", changes, err, restored)
	}
	if _, err := os.Stat(asked); err != nil {
		t.Errorf("this test shows nothing: %v", err)
	}
}

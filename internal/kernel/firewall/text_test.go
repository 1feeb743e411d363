package firewall

import (
	"strings"
	"testing"
)

// TestConnectionsOfDirectorsAreLetThroughInBothDirections: what the kernel sends
// to 224.0.0.81, of IPv4 alone, and for directors only. A real server's rules
// say nothing of it.
func TestConnectionsOfDirectorsAreLetThroughInBothDirections(t *testing.T) {
	director, server := everything(), everything()
	server.Sync = false
	for mode, want := range map[Mode][]string{
		IPTables: {"-A HOLDFAST-IN -m comment --comment MARK -d 224.0.0.81 -p udp --dport 8848 -j ACCEPT\n", "-A HOLDFAST-OUT -m comment --comment MARK -d 224.0.0.81 -p udp --dport 8848 -j ACCEPT\n"},
		NFTables: {"#   input and output: ip daddr 224.0.0.81 udp dport 8848 accept\n"},
	} {
		text, err := Text(mode, director)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range want {
			if strings.Count(text, strings.ReplaceAll(line, "MARK", director.family(false).mark())) != 1 {
				t.Errorf("%s: not once %q in\n%s", mode, line, text)
			}
		}
		if n := strings.Count(text, "8848"); n != len(want) {
			t.Errorf("%s: the port stands in %d places, want %d:\n%s", mode, n, len(want), text)
		}
		if text, err = Text(mode, server); err != nil || strings.Contains(text, "8848") {
			t.Errorf("%s of a real server: %v\n%s", mode, err, text)
		}
	}
	if (Rules{Sync: true}).empty() {
		t.Error("a director without anything else has no rules")
	}
}

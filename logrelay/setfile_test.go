package logrelay

import (
	"net/netip"
	"testing"

	"holdfast/cluster"
)

// TestAReloadNamesNewNodesAndThoseWithOtherAddresses: from then on an address
// is the node's that the new cluster file gives it to, and no longer that of
// the one that had it.
func TestAReloadNamesNewNodesAndThoseWithOtherAddresses(t *testing.T) {
	s, dir, _ := serve(t, nil)
	c, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	send := func(line string) {
		t.Helper()
		if _, err := c.conn.Write(c.session.AppendLine(nil, []byte(line))); err != nil {
			t.Fatal(err)
		}
		if err := c.read(0); err != nil {
			t.Fatal(err)
		}
	}
	send("before") // names no host: it is of who sent it
	has(t, dir, "server", " before\n")
	s.SetFile(cluster.Single("cn77", netip.MustParseAddr("127.0.0.1")))
	send("behind")
	has(t, dir, "cn77", " behind\n")
	if lines, done := ask(t, s, Query{Severity: NoSeverity, Nodes: "@service"}); len(lines) != 2 || !done {
		t.Errorf("of the new file's nodes there is %q, want both lines: their address is cn77's now", lines)
	}
}

// TestANodesOwnLinesHaveItsNewAddress: other nodes find out by it whose they are.
func TestANodesOwnLinesHaveItsNewAddress(t *testing.T) {
	s, _, _ := prepare(t)
	if got := s.ownAddress(); got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("%v", got)
	}
	s.SetFile(cluster.Single("server", netip.MustParseAddr("127.0.0.9")))
	if got := s.ownAddress(); got != netip.MustParseAddr("127.0.0.9") {
		t.Errorf("after a reload it is %v", got)
	}
}

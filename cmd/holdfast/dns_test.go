package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testDNS changes and compares the zones of a running node.
func (n *node) testDNS(t *testing.T) {
	zones := strings.Fields(n.expect(t, exitOK, "virtual.", "dns", "zone"))
	var domain string
	for _, z := range zones {
		if z != "virtual." && !strings.HasSuffix(z, ".arpa.") {
			domain = z
		}
	}
	n.expect(t, exitOK, "added db2."+domain+" 60 IN A 10.1.0.52", "dns", "record", "add", "db[1-2]", "60", "A", "10.1.0.[51-52]")
	n.expect(t, exitOK, "db1."+domain, "dns", "record", "list")
	n.expect(t, exitOK, "\"from\": \"store\"", "dns", "record", "list", "--json")
	n.until(t, "the record is in the zone", func() bool {
		out, _ := n.run(t, "", "dns", "zone", domain)
		return strings.Contains(out, "db2."+domain)
	})
	n.expect(t, exitFailed, "CNAME stands alone", "dns", "record", "add", "db1", "CNAME", "db2")
	n.expect(t, exitNotFound, "no record", "dns", "record", "del", "db9", "A", "10.1.0.51")
	n.expect(t, exitNotFound, "not primary", "dns", "zone", "example.org")

	zone, _ := n.run(t, "", "dns", "zone", domain)
	file, hosts := filepath.Join(n.dir, "zone"), filepath.Join(n.dir, "hosts")
	for path, text := range map[string]string{file: zone, hosts: "10.1.0.51 db1\n10.1.0.99 db2\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.expect(t, exitOK, "", "dns", "check", domain, "--zone-file", file)
	n.expect(t, exitDegraded, "missing here: db2."+domain+" A 10.1.0.99", "dns", "check", domain, "--hosts", hosts)
	n.expect(t, exitUsage, "missing flags", "dns", "check", domain)
	n.expect(t, exitOK, "deleted db2."+domain, "dns", "record", "del", "db2", "A", "10.1.0.52")
	n.until(t, "the record is gone from the zone", func() bool {
		out, status := n.run(t, "", "dns", "check", domain, "--zone-file", file)
		return status == exitDegraded && strings.Contains(out, "missing here: db2."+domain+" A 10.1.0.52")
	})

	n.expect(t, exitOK, "0 answers", "dns", "cache", "stats")
	n.expect(t, exitOK, "forgot 0 answers", "dns", "cache", "flush", "example.org")
	n.expect(t, exitOK, "[]", "dns", "cache", "dump", "--json")
	n.expect(t, exitOK, "IN A 10.1.0.51", "dns", "query", "db1."+domain)
	n.expect(t, exitOK, "because  ", "dns", "query", "www.example.org", "--from", "203.0.113.9")
	n.expect(t, exitOK, "\"rcode\": \"NXDOMAIN\"", "dns", "query", "nosuch."+domain, "srv", "--json")
	n.expect(t, exitOK, "- in the zone "+domain, "dns", "trace", "db1."+domain)
	n.expect(t, exitFailed, "is no type", "dns", "query", "db1."+domain, "NOSUCH")
	n.expect(t, exitOK, "0 answers in ", "dns", "top", "--for", "100ms")
	n.expect(t, exitFailed, "out of range: up to 1m0s", "dns", "top", "--for", "2m")
	n.expect(t, exitUnreachable, "is holdfast running", "dns", "zone", "--socket", filepath.Join(n.dir, "nowhere.sock"))
}

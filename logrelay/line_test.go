package logrelay

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"holdfast/cluster"
	"holdfast/logrelay/journal"
)

// testNames knows one node and one relay.
func testNames() *names {
	n := newNames(&cluster.File{}, "fb1", []netip.Prefix{netip.MustParsePrefix("10.1.0.9/32")}, 100)
	n.table.Store(&table{nodes: map[netip.Addr]string{netip.MustParseAddr("10.1.0.31"): "cn01"}, own: map[string]bool{"cn01": true}})
	return n
}

func TestALineBelongsToWhoSentIt(t *testing.T) {
	for _, test := range []struct{ source, claimed, want string }{
		{"10.1.0.31", "cn02", "cn01"},
		{"10.1.0.31", "", "cn01"},
		{"10.9.9.9", "cn01", "10.9.9.9"},
		{"2001:db8::1", "cn01", "2001_db8__1"},
		{"10.1.0.9", "cn02", "cn02"},
		{"10.1.0.9", "../../etc/passwd", "_.._etc_passwd"},
		{"10.1.0.9", "...", "10.1.0.9"},
		{"10.1.0.9", "A/B\x00\n", "a_b__"},
		{"10.1.0.9", "", "10.1.0.9"},
		{"127.0.0.1", "cn03.example.com", "cn03.example.com"},
	} {
		if got := testNames().host(netip.MustParseAddr(test.source), []byte(test.claimed)); got != test.want {
			t.Errorf("%s claims %q: %q, want %q", test.source, test.claimed, got, test.want)
		}
	}
}

func TestForgedNamesMakeABoundedNumberOfFiles(t *testing.T) {
	n, seen := testNames(), map[string]bool{}
	for i := range 100_000 {
		seen[n.host(netip.MustParseAddr("10.1.0.9"), fmt.Appendf(nil, "forged%d", i))] = true
		seen[n.host(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), nil)] = true
	}
	if len(seen) > 101 || !seen[overflow] {
		t.Errorf("%d files", len(seen))
	}
	if got := n.host(netip.MustParseAddr("10.1.0.31"), nil); got != "cn01" {
		t.Errorf("a node of the cluster is sent to %q", got)
	}
}

func TestALineIsWrittenAsRsyslogDoes(t *testing.T) {
	received := time.Date(2026, 11, 25, 12, 0, 0, 5000, time.UTC)
	for in, want := range map[string]string{
		"<30>2026-11-25T11:59:59.123456+01:00 cn01 sshd[12]: hello": "2026-11-25T11:59:59.123456+01:00 cn01 daemon.info sshd[12]: hello",
		"<13>Nov 25 11:59:59 su: no\nhost\x00\x7f":                  "2026-11-25T11:59:59+00:00 fb1 user.notice su: no#012host#000#177",
		"<165>1 2026-11-25T05:14:15Z h app 8 - - text":              "2026-11-25T05:14:15Z h local4.notice app[8]: text",
	} {
		l := line{}
		l.read(journal.Record{Time: received.UnixNano(), Data: []byte(in)}, testNames())
		l.received = received
		if !l.Time.IsZero() && l.RFC3339 == nil {
			l.Time = time.Date(2026, 11, 25, 11, 59, 59, 0, time.UTC)
		}
		if got := string(l.appendFile(nil)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzLine: whatever a sender writes, it is one line of text, in a file of the folder.
func FuzzLine(f *testing.F) {
	f.Add([]byte("<30>2026-11-25T11:59:59.123456+01:00 ../x/y sshd[\n12]: hel\x00lo"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var l line
		l.read(journal.Record{Source: netip.MustParseAddr("10.1.0.9"), Data: b}, testNames())
		if l.host == "" || strings.ContainsAny(l.host, "/\x00") || l.host[0] == '.' {
			t.Fatalf("host %q", l.host)
		}
		whole := func() {
			t.Helper()
			out := l.appendFile(nil)
			for _, c := range out {
				if c < 0x20 || c == 0x7f {
					t.Fatalf("%q has a control character", out)
				}
			}
		}
		whole()
		// What a rule makes of its parts is no other.
		l.retag(string(b))
		if renamed := l.rename(string(b)); l.host == "" || strings.ContainsAny(l.host, "/\x00") || l.host[0] == '.' {
			t.Fatalf("host %q, %v", l.host, renamed)
		}
		if bytes.ContainsAny(l.App, ": \n") || len(l.App)+len(l.Proc) > maxTag {
			t.Fatalf("tag %q[%q]", l.App, l.Proc)
		}
		whole()
		if sizes, sound := parseUndo(b, "/hosts"); sound > len(b) || len(sizes) > 1+len(b) {
			t.Fatal(sizes)
		}
	})
}

func TestRulesDecideWhereALineGoes(t *testing.T) {
	debug, err := compile(`severity == 7 && app == "slurmd"`)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := compileSecret(`password=\S+`)
	if err != nil {
		t.Fatal(err)
	}
	r := &rules{list: []rule{{program: debug, drop: true, to: []string{"siem"}}}}
	r.secrets = append(r.secrets, secret)
	var l line
	l.read(journal.Record{Data: []byte("<15>Nov 25 12:00:00 cn01 slurmd: password=hunter2 ok")}, testNames())
	if r.judge(&l, "siem") != dropped || r.judge(&l, "files") != goes {
		t.Error("the rule is about siem alone")
	}
	if got := string(r.redact(l.appendFile([]byte("before ")), 7)); strings.Contains(got, "hunter2") || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, "[redacted] ok") {
		t.Errorf("%q", got)
	}
}

func TestTheGateHoldsSendersBackWhileTheDiskIsFull(t *testing.T) {
	g := newGate()
	for _, step := range []struct {
		used       float64
		held, shed bool
	}{{50, false, false}, {95, true, false}, {99.5, true, true}, {94, true, false}, {92, false, false}} {
		full, shed := g.disk(step.used)
		if full != step.held || shed != step.shed || (g.held() != "") != step.held {
			t.Errorf("%.1f %%: held %v, shed %v", step.used, full, shed)
		}
	}
	g.pause(true)
	if g.disk(10); g.held() == "" {
		t.Error("a disk with room ends an admin's pause")
	}
	g.pause(false)
	if err := g.wait(t.Context()); err != nil || g.held() != "" {
		t.Error("not open again")
	}
}

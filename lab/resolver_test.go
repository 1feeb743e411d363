package lab

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// nameserver answers every A question with one address until the test ends.
func nameserver(t *testing.T, conn net.PacketConn, answer [4]byte) {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: answer},
				}}
			}
			if packed, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(packed, from) // the client asks again
			}
		}
	}()
}

func TestResolverOfAHostIsTheOneOfItsResolvConf(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err, "(hack/deps installs it)")
	}
	_, a, b := pair(t, Options{})
	conn, err := b.ListenPacket("udp4", "10.99.0.2:53")
	must(t, err)
	nameserver(t, conn, [4]byte{10, 99, 0, 77})
	must(t, a.Write("/etc/resolv.conf", []byte("nameserver 10.99.0.2\noptions timeout:10\n")))
	if got := run(t, a, "dig", "+short", "+tries=1", "+time=20", "apt.service.virtual"); got != "10.99.0.77" {
		t.Errorf("dig says %q", got)
	}
	if got := strings.Fields(run(t, a, "getent", "ahostsv4", "apt.service.virtual")); len(got) == 0 || got[0] != "10.99.0.77" {
		t.Errorf("the C library resolves it to %q", got)
	}
}

func TestMountsOfDisksAreFound(t *testing.T) {
	f, err := os.Open("testdata/mountinfo")
	must(t, err)
	defer f.Close()
	got, err := parseMounts(f)
	must(t, err)
	want := []string{"/boot", "/home", "/home/with space", "/srv/data"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := parseMounts(strings.NewReader("22 1 8:1 / / rw\n")); err == nil {
		t.Error("a line without a file system is accepted")
	}
}

func TestTailIsTheLastLines(t *testing.T) {
	path := t.TempDir() + "/log"
	must(t, os.WriteFile(path, []byte("one\ntwo\nthree\n\n"), 0o600))
	for lines, want := range map[int]string{1: "three", 2: "two\nthree", 3: "one\ntwo\nthree", 9: "one\ntwo\nthree"} {
		if got, err := tail(path, lines); err != nil || got != want {
			t.Errorf("the last %d lines are %q, %v; want %q", lines, got, err, want)
		}
	}
}

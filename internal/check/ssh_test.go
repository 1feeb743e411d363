package check

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// says listens and says a text to everybody, and nothing more.
func says(t *testing.T, text string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			t.Cleanup(func() { conn.Close() })
			_, _ = io.WriteString(conn, text)
		}
	}()
	return l.Addr().String()
}

func TestOnlyAnSSHServerPassesTheSSHProbe(t *testing.T) {
	machine := stall.Test(t, "")
	for text, want := range map[string]state.Status{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n":    state.Passing,
		"a notice\r\nanother\r\nSSH-1.99-old\n": state.Passing,
		"SSH-1.5-ancient\r\n":                   state.Critical,
		"220 mail.example.com ESMTP\r\n":        state.Critical,
		"SSH-2.0-cut":                           state.Critical,
		"":                                      state.Critical, // hangs: overloaded, or its MaxStartups are reached
		"SSH-2.0-" + strings.Repeat("x", 300) + "\r\n":      state.Critical,
		strings.Repeat("talk\r\n", 60) + "SSH-2.0-late\r\n": state.Critical,
	} {
		limit := 200 * time.Millisecond
		if want == state.Passing {
			limit = time.Minute // a busy machine must not make silence of an answer
		}
		d := Definition{ID: "x", SSH: says(t, text), Timeout: limit}
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
		p, err := NewProbe(d, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), d.Timeout)
		began := time.Now()
		r := p.Probe(ctx)
		if want != state.Passing { // well below DefaultTimeout
			machine.Judge(t, fmt.Sprintf("a probe of at most %v that hears %.40q", limit, text), 5*time.Second, began, time.Now())
		}
		if r.Status != want || strings.ContainsAny(r.Output, "\r\n") {
			t.Errorf("%.40q is %v: %q; want %v", text, r.Status, r.Output, want)
		}
		cancel()
	}
}

func TestNobodyThereIsCritical(t *testing.T) {
	p, err := NewProbe(Definition{ID: "x", SSH: "127.0.0.1:1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r := p.Probe(t.Context()); r.Status != state.Critical || !strings.Contains(r.Output, "refused") {
		t.Errorf("%v: %q", r.Status, r.Output)
	}
}

// Whatever a server says first, only one line without control characters
// passes for its identification.
func FuzzIdentification(f *testing.F) {
	f.Add([]byte("SSH-2.0-OpenSSH_9.2p1\r\n"))
	f.Add([]byte("SSH-2.0-\x1b[2J\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if id, ok := identification(line); ok && (len(id) > maxSSHLine || strings.ContainsFunc(id, isControl) || !strings.HasPrefix(id, "SSH-")) {
			t.Errorf("%q passes as %q", line, id)
		}
	})
}

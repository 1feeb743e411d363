package logrelay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
)

// serve runs a relay in this process.
func serve(t *testing.T, change func(*settings)) (s *Server, dir string, stop func()) {
	t.Helper()
	dir = t.TempDir()
	free := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	s, err := New(Config{
		Node: "server", DataDir: dir, Dir: filepath.Join(dir, "hosts"),
		Listen: map[string][]netip.AddrPort{"relp": free, "udp": free, "tcp": free},
	}, Deps{File: cluster.Single("server", netip.MustParseAddr("127.0.0.1")), Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	settled(s)
	if change != nil {
		change(&s.settings)
	}
	return s, dir, run(t, s)
}

// run runs a relay until stop or the test's end.
func run(t *testing.T, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// has waits until a host's file holds a text.
func has(t *testing.T, dir, host, text string) {
	t.Helper()
	eventually(t, time.Minute, host+" has its line", func() error {
		b, err := os.ReadFile(filepath.Join(dir, "hosts", host+fileSuffix))
		if err == nil && !strings.Contains(string(b), text) {
			err = fmt.Errorf("no %q in %q", text, b)
		}
		return err
	})
}

func TestEveryWayInLeadsToTheFileAndOnward(t *testing.T) {
	last, lastDir, _ := serve(t, nil)
	first, dir, _ := serve(t, func(s *settings) {
		s.forward = []target{
			{name: "relp", via: viaRELP, addresses: []string{last.Addrs("relp")[0].String()}},
			{name: "dead", via: viaTCP, addresses: []string{"127.0.0.1:1"}},
		}
	})
	for input, network := range map[string]string{"udp": "udp", "tcp": "tcp"} {
		conn, err := net.Dial(network, first.Addrs(input)[0].String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "<13>Nov 25 12:00:00 by-%s test: hello\n", input); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	s, err := dial(first.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.conn.Write(s.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 by-relp test: hello"))); err != nil {
		t.Fatal(err)
	}
	if err := s.read(0); err != nil {
		t.Fatal(err)
	}
	_ = s.conn.Close()
	for _, host := range []string{"by-udp", "by-tcp", "by-relp"} {
		has(t, dir, host, "user.notice test: hello\n") // though a target is dead
		has(t, lastDir, host, "user.notice test: hello\n")
	}
	answer := httptest.NewRecorder()
	first.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), "GET", QueryPath+`?since=2020-01-01T00:00:00Z&if=host+%3D%3D+%22by-tcp%22`, nil))
	if answer.Code != 200 || !strings.Contains(answer.Body.String(), "by-tcp") || strings.Count(answer.Body.String(), "\n") != 2 {
		t.Errorf("query: %d %q", answer.Code, answer.Body)
	}
	answer = httptest.NewRecorder()
	first.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), "GET", StatusPath, nil))
	var status Status
	if err := status.Read(answer.Body); err != nil || status.End != 3 || len(status.Outputs) != 3 || status.Held != "" {
		t.Errorf("%+v, %v", status, err)
	}
}

// TestLoggerAndBusyBoxAreUnderstood: util-linux's logger in its dialects, and
// BusyBox's.
func TestLoggerAndBusyBoxAreUnderstood(t *testing.T) {
	s, dir, _ := serve(t, nil)
	_, udp, _ := net.SplitHostPort(s.Addrs("udp")[0].String())
	_, tcp, _ := net.SplitHostPort(s.Addrs("tcp")[0].String())
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for text, args := range map[string][]string{
		"rfc3164-udp": {"--udp", "--port", udp, "--rfc3164"},
		"rfc5424-udp": {"--udp", "--port", udp, "--rfc5424"},
		"rfc5424-tcp": {"--tcp", "--port", tcp, "--rfc5424", "--octet-count"},
		"rfc3164-tcp": {"--tcp", "--port", tcp, "--rfc3164"},
	} {
		args = append([]string{"--server", "127.0.0.1", "--tag", "tester", "--priority", "local3.err"}, args...)
		if out, err := exec.CommandContext(t.Context(), "logger", append(args, text)...).CombinedOutput(); err != nil {
			t.Fatalf("logger %v: %v, %s", args, err, out)
		}
		has(t, dir, safeName(strings.ToLower(host)), "local3.err tester: "+text)
	}
}

func TestRotatedFilesAreCompressedAndBounded(t *testing.T) {
	s, dir, stop := serve(t, func(s *settings) {
		s.rotate = rotateConfig{bytes: 1000, every: time.Hour, keep: 2}
	})
	c, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		if _, err := c.conn.Write(c.session.AppendLine(nil, append(fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn01 test: seq=%d ", i), bytes.Repeat([]byte{'x'}, 1000)...))); err != nil {
			t.Fatal(err)
		}
		if err := c.read(0); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "the file is put away", func() error {
			if next := s.Status().Outputs[0].Next; next != uint64(i+1) {
				return fmt.Errorf("the cursor stands at %d of %d", next, i+1)
			}
			return nil
		})
	}
	eventually(t, time.Minute, "two compressed files are left", func() error {
		list, err := filepath.Glob(filepath.Join(dir, "hosts", "cn01.log.*"))
		if err == nil && (len(list) != 2 || !strings.HasSuffix(list[0], zstSuffix) || !strings.HasSuffix(list[1], zstSuffix)) {
			err = fmt.Errorf("%q", list)
		}
		return err
	})
	_ = c.conn.Close()
	stop()
}

// TestAPlannedEndHearsOutWhoIsSpeaking: a line that was half sent when the end
// came is stored and answered. Its client might have no other for hours, and
// would keep it until then.
func TestAPlannedEndHearsOutWhoIsSpeaking(t *testing.T) {
	s, dir, stop := serve(t, nil)
	s.quiet, s.patience, s.endWithin = time.Minute, time.Minute, time.Minute
	addr := s.Addrs("relp")[0].String()
	c, err := dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	frame := c.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn01 test: the last"))
	half := len(frame) / 2
	if _, err := c.conn.Write(frame[:half]); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stop()
	}()
	eventually(t, time.Minute, "no new client is taken", func() error {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil
		}
		_ = conn.Close()
		return fmt.Errorf("the listener is open")
	})
	if _, err := c.conn.Write(frame[half:]); err != nil {
		t.Fatal(err)
	}
	if err := c.read(0); err != nil || c.acked != 1 {
		t.Errorf("%d acknowledged, %v", c.acked, err)
	}
	_ = c.conn.Close()
	<-ended
	has(t, dir, "cn01", "the last")
}

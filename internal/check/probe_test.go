package check

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// probe makes one probe within the definition's time limit; unless that says one,
// within a minute: a busy machine must not make silence of an answer.
func probe(t *testing.T, d Definition, commands Commander) Result {
	t.Helper()
	d.ID = "c"
	if d.Timeout == 0 {
		d.Timeout = time.Minute
	}
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	d = d.WithDefaults()
	p, err := NewProbe(d, commands)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), d.Timeout)
	defer cancel()
	return p.Probe(ctx)
}

func expect(t *testing.T, got Result, status state.Status, parts ...string) {
	t.Helper()
	if got.Status != status {
		t.Errorf("%s (%s), want %s", got.Status, got.Output, status)
	}
	for _, part := range parts {
		if !strings.Contains(got.Output, part) {
			t.Errorf("output %q lacks %q", got.Output, part)
		}
	}
}

func TestHTTPStatusDecides(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.Trim(r.URL.Path, "/"))
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "because")
	}))
	defer server.Close()
	for code, want := range map[int]state.Status{
		200: state.Passing, 204: state.Passing, 299: state.Passing,
		429: state.Warning,
		304: state.Critical, 400: state.Critical, 404: state.Critical, 500: state.Critical, 503: state.Critical,
	} {
		got := probe(t, Definition{HTTP: server.URL + "/" + strconv.Itoa(code)}, nil)
		expect(t, got, want, "HTTP GET "+server.URL, strconv.Itoa(code))
		if said := strings.Contains(got.Output, "because"); said != (code >= 400) {
			t.Errorf("%d: output %q", code, got.Output)
		}
	}
}

func TestHTTPSendsWhatItsDefinitionSays(t *testing.T) {
	var got *http.Request
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
	}))
	defer server.Close()
	d := Definition{
		HTTP: server.URL + "/x?y=1", Method: "POST", Body: "ping",
		Header: map[string][]string{"Host": {"apt.example.com"}, "X-Two": {"a", "b"}, "user-agent": {"mine"}},
	}
	expect(t, probe(t, d, nil), state.Passing)
	if got.Method != "POST" || got.Host != "apt.example.com" || got.URL.RawQuery != "y=1" || string(body) != "ping" ||
		len(got.Header["X-Two"]) != 2 || got.UserAgent() != "mine" || !got.Close {
		t.Errorf("the server saw %s %s host %s, header %v, body %q, close %t", got.Method, got.URL, got.Host, got.Header, body, got.Close)
	}
}

func TestHTTPRedirects(t *testing.T) {
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	defer elsewhere.Close()
	mux := http.NewServeMux()
	mux.Handle("/same", http.RedirectHandler("/fine", http.StatusFound))
	mux.HandleFunc("/fine", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/away", http.RedirectHandler(elsewhere.URL, http.StatusFound))
	mux.Handle("/loop", http.RedirectHandler("/loop", http.StatusFound))
	server := httptest.NewServer(mux)
	defer server.Close()
	expect(t, probe(t, Definition{HTTP: server.URL + "/same"}, nil), state.Passing)
	expect(t, probe(t, Definition{HTTP: server.URL + "/away"}, nil), state.Critical, "redirected to elsewhere")
	expect(t, probe(t, Definition{HTTP: server.URL + "/loop"}, nil), state.Critical, "more than 3 redirects")
}

func TestTheSchemesOwnPortIsNoOtherServer(t *testing.T) {
	for _, test := range []struct {
		from, to string
		same     bool
	}{
		{"http://10.1.0.1:80/", "http://10.1.0.1/x", true},
		{"https://apt.example.com/", "https://APT.example.com:443/x", true},
		{"http://[2001:db8::1]:80/", "http://[2001:db8::1]/", true},
		{"http://10.1.0.1:3142/", "http://10.1.0.1/", false},
		{"http://10.1.0.1:80/", "https://10.1.0.1/", false},
		{"http://10.1.0.1/", "http://10.1.0.2/", false},
	} {
		from, to := httptest.NewRequest("GET", test.from, nil), httptest.NewRequest("GET", test.to, nil)
		if err := sameOrigin(to, []*http.Request{from}); (err == nil) != test.same {
			t.Errorf("from %s to %s: %v", test.from, test.to, err)
		}
	}
}

func TestHTTPBodyIsBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(500)
		for r.Context().Err() == nil { // until the probe hangs up
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	got := probe(t, Definition{HTTP: server.URL, Timeout: time.Minute}, nil)
	expect(t, got, state.Critical, "500")
	if len(got.Output) > 2*maxAnswer {
		t.Errorf("output of %d bytes", len(got.Output))
	}
}

func TestBadNewsDoesNotWaitForItsBody(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "down for")
		w.(http.Flusher).Flush()
		<-r.Context().Done() // ... the rest never comes
	}))
	defer server.Close()
	machine, began := stall.Test(t, ""), time.Now()
	got := probe(t, Definition{HTTP: server.URL, Timeout: 10 * time.Minute, Interval: time.Hour}, nil)
	machine.Judge(t, "bad news", 10*time.Second, began, time.Now())
	expect(t, got, state.Critical, "503 Service Unavailable: down for")
}

func TestHTTPTimeLimit(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer server.Close()
	machine, began := stall.Test(t, ""), time.Now()
	got := probe(t, Definition{HTTP: server.URL, Timeout: 50 * time.Millisecond}, nil)
	machine.Judge(t, "a probe of at most 50 ms", 5*time.Second, began, time.Now()) // well below DefaultTimeout
	expect(t, got, state.Critical, "no answer within 50ms")
}

// caFile has the certificate that a test server is trusted by.
func caFile(t *testing.T, server *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHTTPSTrust(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	server.StartTLS()
	defer server.Close()
	ca := caFile(t, server)
	check := func(trust TLS) Result { return probe(t, Definition{HTTP: server.URL, TLS: trust}, nil) }
	expect(t, check(TLS{}), state.Critical, "certificate")
	expect(t, check(TLS{SkipVerify: true}), state.Passing)
	expect(t, check(TLS{CAFile: ca}), state.Passing)
	expect(t, check(TLS{CAFile: ca, ServerName: "example.com"}), state.Passing)
	expect(t, check(TLS{CAFile: ca, ServerName: "wrong.test"}), state.Critical, "wrong.test")
	expect(t, check(TLS{CAFile: ca + ".absent"}), state.Critical, "CA file", "no such file")
	if err := os.WriteFile(ca, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, check(TLS{CAFile: ca}), state.Critical, "holds no certificate")
}

func TestConnectionErrorsReadTheSameEachTime(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() { // resets every connection
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	}()
	d := Definition{HTTP: "http://" + listener.Addr().String() + "/"}
	first := probe(t, d, nil)
	expect(t, first, state.Critical)
	if strings.Contains(first.Output, "->") {
		t.Errorf("output %q names the port of the probe itself", first.Output)
	}
}

func TestTCP(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	address := listener.Addr().String()
	expect(t, probe(t, Definition{TCP: address}, nil), state.Passing, address, "success")
	const nobody = "127.0.0.1:1" // one of the kernel's own choice might be given to another meanwhile
	expect(t, probe(t, Definition{TCP: nobody}, nil), state.Critical, nobody, "connection refused")
}

func TestScriptStatusDecides(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "check")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho \"said $2\"\n[ $1 = hang ] && exec sleep 100\nexit $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	commands, err := command.New(dir + "/")
	if err != nil {
		t.Fatal(err)
	}
	run := func(limit time.Duration, args ...string) Result {
		return probe(t, Definition{Script: append([]string{path}, args...), Timeout: limit}, commands)
	}
	expect(t, run(time.Minute, "0", "a b; c"), state.Passing, "said a b; c")
	expect(t, run(time.Minute, "1", "x"), state.Warning, "said x")
	expect(t, run(time.Minute, "2", "x"), state.Critical, "exit status 2", "said x")
	// A time limit in which it came to say nothing shows nothing, and is doubled.
	for limit := time.Second; ; limit *= 2 {
		got := run(limit, "hang", "x")
		expect(t, got, state.Critical, "not done within "+limit.String())
		if strings.Contains(got.Output, "said x") || t.Failed() {
			break
		}
		if limit > time.Minute {
			t.Fatalf("within %s it did not say what it had said: %s", limit, got.Output)
		}
	}
	expect(t, probe(t, Definition{Script: []string{"/bin/true"}}, commands), state.Critical, "not allowed")
	expect(t, probe(t, Definition{Script: []string{path}}, nil), state.Critical, "not run here")
}

func TestProcessFindsItself(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, probe(t, Definition{Process: filepath.Base(exe)}, nil), state.Passing, "alive")
	expect(t, probe(t, Definition{Process: "no-such-process-here"}, nil), state.Critical, "none is alive")
}

// A made-up /proc: what a name must match, and what is not alive.
func TestProcessMatching(t *testing.T) {
	proc := t.TempDir()
	add := func(pid, comm, stat, cmdline, exe string) {
		dir := filepath.Join(proc, pid)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"comm": comm + "\n", "stat": stat, "cmdline": cmdline} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if exe == "" {
			return
		}
		if err := os.Symlink(exe, filepath.Join(dir, "exe")); err != nil {
			t.Fatal(err)
		}
	}
	add("10", "in.tftpd", "10 (in.tftpd) S 1", "/usr/sbin/in.tftpd\x00-l", "/usr/sbin/in.tftpd")
	add("11", "dead", "11 (dead) Z 1", "", "")
	add("12", "a) Z (b", "12 (a) Z (b) R 1", "x", "")
	add("13", "a-very-long-nam", "13 (a-very-long-nam) S 1", "/opt/a-very-long-name\x00", "")
	add("14", "worker", "14 (worker) S 1", "renamed", "/usr/sbin/daemon (deleted)")
	add("15", "torn", "15 (torn", "x", "")
	if err := os.Mkdir(filepath.Join(proc, "16"), 0o755); err != nil { // ended meanwhile
		t.Fatal(err)
	}
	for name, want := range map[string]state.Status{
		"in.tftpd":              state.Passing,
		"in.tftp":               state.Critical,
		"dead":                  state.Critical,
		"a) Z (b":               state.Passing,
		"a-very-long-name":      state.Passing,
		"a-very-long-nam":       state.Passing,
		"a-very-long-name-else": state.Critical,
		"daemon":                state.Passing,
		"torn":                  state.Critical,
	} {
		got := processProbe{name: name, proc: proc}.Probe(t.Context())
		if got.Status != want {
			t.Errorf("%q: %s (%s), want %s", name, got.Status, got.Output, want)
		}
	}
	got := processProbe{name: "x", proc: filepath.Join(proc, "absent")}.Probe(t.Context())
	expect(t, got, state.Critical, "list processes")
}

func FuzzProcessState(f *testing.F) {
	f.Add([]byte("in.tftpd"))
	f.Add([]byte("a) Z (b"))
	f.Add([]byte("7 (torn"))
	f.Fuzz(func(t *testing.T, name []byte) {
		_ = isRunning(name) // whatever the file holds
		// No name makes a process look dead or alive.
		for state, want := range map[string]bool{"S": true, "R": true, "Z": false, "X": false} {
			stat := "7 (" + string(name) + ") " + state + " 1 7"
			if got := isRunning([]byte(stat)); got != want {
				t.Fatalf("%q: running %t, want %t", stat, got, want)
			}
		}
	})
}

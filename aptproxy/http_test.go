package aptproxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab/stall"
)

// raw sends text over one connection and reads all that comes until it is
// closed, or nothing more comes for a while.
func (p *proxy) raw(text string) string { return p.rawUntil(text, "") }

// untilClosed is for an answer whose end is that of the connection.
const untilClosed = "closed"

// rawUntil is raw for who knows how the answer ends, however long that takes to
// come.
func (p *proxy) rawUntil(text, end string) string {
	p.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		p.t.Fatal(err)
	}
	var out []byte
	buf := make([]byte, 4096)
	for wait := patience; ; {
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(buf)
		out = append(out, buf[:n]...)
		if err != nil || end != "" && end != untilClosed && strings.HasSuffix(string(out), end) {
			return string(out)
		}
		if end == "" {
			wait = time.Second
		}
	}
}

func TestPartsAndConditionsOfAFileHotAndCold(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	data := o.file(t, largeDeb)
	n := len(data)
	for _, cold := range []bool{true, false} {
		for _, test := range []struct {
			header, value string
			status        int
			body          []byte
		}{
			{"Range", "bytes=100-199", 206, data[100:200]},
			{"Range", "bytes=1000-", 206, data[1000:]},
			{"Range", "bytes=-50", 206, data[n-50:]},
			{"Range", fmt.Sprintf("bytes=%d-", n-1), 206, data[n-1:]},
			{"If-Modified-Since", "Thu, 01 Jan 2026 00:00:00 GMT", 200, data},
			{"If-None-Match", `"other"`, 200, data},
		} {
			p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
			p.update(o)
			if !cold {
				p.must(o, largeDeb)
			}
			a := p.get("/debian/"+largeDeb, test.header, test.value)
			if a.err != nil || a.status != test.status || !bytes.Equal(a.body, test.body) {
				t.Errorf("cold %v, %s: %s: status %d and %d bytes, %v; want %d and %d", cold, test.header, test.value, a.status, len(a.body), a.err, test.status, len(test.body))
			}
			p.stop()
		}
	}
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	a := p.must(o, largeDeb)
	for header, value := range map[string]string{"If-None-Match": a.header.Get("Etag"), "If-Modified-Since": a.header.Get("Last-Modified")} {
		if again := p.get("/debian/"+largeDeb, header, value); again.status != http.StatusNotModified {
			t.Errorf("%s: %s: status %d", header, value, again.status)
		}
	}
	later := time.Now().Add(100 * time.Hour).UTC().Format(http.TimeFormat)
	if again := p.get("/debian/"+inRelease, "If-Modified-Since", later); again.status != http.StatusOK {
		t.Errorf("a client with a newer Release is told that its own is current: status %d", again.status)
	}
}

func TestOldAndHastyClientsAreAnswered(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	small := string(o.file(t, smallDeb))
	if out := p.rawUntil("GET /debian/"+smallDeb+" HTTP/1.0\r\n\r\n", untilClosed); !strings.Contains(out, "200 OK") || !strings.HasSuffix(out, small) {
		t.Errorf("HTTP/1.0: %q", clip(out))
	}
	if out := p.rawUntil("HEAD /debian/"+largeDeb+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", untilClosed); !strings.Contains(out, fmt.Sprintf("Content-Length: %d\r\n", len(o.file(t, largeDeb)))) || !strings.HasSuffix(out, "\r\n\r\n") {
		t.Errorf("HEAD of a cold file: %q", clip(out))
	}
	// Ten requests at once, as apt sends them; answers in order.
	var text string
	for i := range 10 {
		text += fmt.Sprintf("GET /debian/pool/main/s/small%d/small%[1]d_1.0_all.deb HTTP/1.1\r\nHost: x\r\n\r\n", i%5)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	for i := range 10 {
		response, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		body, err := io.ReadAll(response.Body)
		want := o.file(t, fmt.Sprintf("pool/main/s/small%d/small%[1]d_1.0_all.deb", i%5))
		if err != nil || !bytes.Equal(body, want) {
			t.Errorf("answer %d: %d bytes, %v", i, len(body), err)
		}
	}
}

func TestWhatNoClientMaySendIsRefused(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	secret := filepath.Join(p.config.Dir, "secret")
	if err := os.WriteFile(secret, []byte("hidden"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"smuggled by two lengths":  "GET /debian/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"smuggled by chunks":       "GET /debian/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"a GET with a body":        "GET /debian/" + smallDeb + " HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		"a giant header":           "GET /debian/x HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n",
		"a climbing path":          "GET /debian/../../../secret HTTP/1.1\r\nHost: x\r\n\r\n",
		"an encoded climbing path": "GET /debian/%2e%2e/%2e%2e/secret HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST":                     "POST /debian/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		"CONNECT":                  "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
		"this machine":             "GET http://127.0.0.1:8500/v1/kv/?recurse HTTP/1.1\r\nHost: x\r\n\r\n",
		"a cloud's metadata":       "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\n",
		"the cluster":              "GET http://192.0.2.1/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"no HTTP":                  "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"an odd peer request":      "GET /holdfast/blob/../secret HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		out := p.raw(text)
		if !strings.HasPrefix(out, "HTTP/1.1 4") || strings.Contains(out, "HTTP/1.1 200") || strings.Contains(out, "hidden") {
			t.Errorf("%s: %q", name, clip(out))
		}
	}
	p.must(o, smallDeb)
}

func TestConnectGoesWhereTheFileSaysAlone(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	at := echo.Addr().String()
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)+"  connect: [\""+at+"\"]\n")
	out := p.rawUntil("CONNECT "+at+" HTTP/1.1\r\nHost: "+at+"\r\n\r\nhello through the tunnel", "hello through the tunnel")
	if !strings.HasPrefix(out, "HTTP/1.1 200") || !strings.HasSuffix(out, "hello through the tunnel") {
		t.Errorf("%q", out)
	}
}

// plainServer is a server that nobody vouches for.
func plainServer(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s
}

// loopback lets clients ask for servers of the test.
const loopback = "  origins: [127.0.0.0/8]\n"

func TestOtherServersAreCachedByHTTPsRules(t *testing.T) {
	asked, changed := 0, false
	server := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		tag := `"one"`
		if changed {
			tag = `"two"`
		}
		w.Header().Set("Etag", tag)
		if strings.HasPrefix(r.URL.Path, "/fresh") {
			w.Header().Set("Cache-Control", "max-age=3600")
		}
		if strings.HasPrefix(r.URL.Path, "/private") {
			w.Header().Set("Cache-Control", "private")
		}
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, "content "+tag)
	})
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o)+loopback)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(path, body string, times int) {
		t.Helper()
		p.settled()
		before := asked
		if a := p.get("/" + u.Host + path); a.status != http.StatusOK || string(a.body) != body {
			t.Errorf("%s: status %d, %q, want %q", path, a.status, a.body, body)
		}
		if asked-before != times {
			t.Errorf("%s: the server was asked %d times, want %d", path, asked-before, times)
		}
	}
	expect("/fresh", `content "one"`, 1)
	expect("/fresh", `content "one"`, 0)
	expect("/asked", `content "one"`, 1)
	expect("/asked", `content "one"`, 1) // 304
	expect("/private", `content "one"`, 1)
	changed = true
	expect("/fresh", `content "one"`, 0)
	expect("/asked", `content "two"`, 1)
	expect("/private", `content "two"`, 1)
	p.clock.pass(2 * time.Hour)
	expect("/fresh", `content "two"`, 1)
	server.Close()
	p.clock.pass(2 * time.Hour)
	a := p.get("/" + u.Host + "/fresh")
	if a.status != http.StatusOK || a.header.Get("Warning") == "" {
		t.Errorf("with its server down: status %d, warning %q", a.status, a.header.Get("Warning"))
	}
	if a := p.get("/" + u.Host + "/never"); a.status != http.StatusBadGateway {
		t.Errorf("what was never seen, with its server down: %d", a.status)
	}
}

func TestARedirectionLeadsNowhereForbidden(t *testing.T) {
	hidden := plainServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hidden") })
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	o.spoiling(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, hidden.URL+"/x", http.StatusFound)
		return true
	})
	if a := p.get("/debian/other/file"); a.status != http.StatusForbidden || strings.Contains(string(a.body), "hidden") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestIdleConnectionsCostOthersNothing(t *testing.T) {
	machine := stall.Test(t, t.TempDir())
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	for range 5000 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	// Connections are accepted in their order: when this one is answered they are.
	p.must(o, smallDeb)
	started := time.Now()
	p.must(o, "pool/main/s/small2/small2_1.0_all.deb")
	machine.Judge(t, "a file beside 5,000 idle connections", 5*time.Second, started, time.Now())
}

func TestThePageAndTheReportAnswer(t *testing.T) {
	o := newOrigin(t, newRepository(t))
	p := startProxy(t, t.TempDir(), oneRepository(o.repo.Keyring, o))
	p.update(o)
	if a := p.get("/acng-report.html"); a.status != http.StatusOK {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := p.get("/"); a.status != http.StatusOK || !strings.Contains(string(a.body), "dists/test") || !strings.Contains(string(a.body), "Acquire::http::Proxy") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

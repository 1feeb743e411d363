package api

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/peer"
	"holdfast/lab/stall"
)

// zeros is a body without an end.
type zeros struct{ read atomic.Int64 } // the transport reads on beside the answer

func (z *zeros) Read(p []byte) (int, error) {
	z.read.Add(int64(len(p)))
	return len(p), nil
}

// push makes a request whose body may be refused half-way. net/http's client would
// take the write that fails for the answer, if it sees that first.
func (c *cell) push(method, path string, body io.Reader) (int, string) {
	c.t.Helper()
	request, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	r := c.raw()
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = request.Write(r)
	}()
	response, text := r.answer()
	r.Close() // of a body that is still written
	<-written
	return response.StatusCode, text
}

// Every stranger of the design, each refused, and each counted.
func TestEachStrangerIsRefusedAndCounted(t *testing.T) {
	ours, theirs := t.TempDir()+"/ca", t.TempDir()+"/ca"
	server := trust(t, ours, "foobar", "n1", peer.RoleServer)
	c := withAgent(t, func(config *Config, deps *Deps) {
		config.HTTPS = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
		deps.TLS = server.ServerOptional()
		deps.Admin = func(r *http.Request) bool {
			identity, err := peer.PeerIdentity(*r.TLS)
			return err == nil && identity.Role == peer.RoleAdmin
		}
	})
	none := c.tokenFor(``)
	admin := trust(t, ours, "foobar", "fbadmin1", peer.RoleAdmin)
	wrong := trust(t, theirs, "foobar", "fbadmin1", peer.RoleAdmin)
	expired := expiredTLS(t, ours)
	https := "https://" + c.server.Addresses()[1].String()
	ask := func(config *tls.Config, path, token string) (int, error) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		defer client.CloseIdleConnections()
		request, err := http.NewRequestWithContext(t.Context(), "GET", https+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Consul-Token", token)
		response, err := client.Do(request)
		if err != nil {
			return 0, err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return response.StatusCode, err
	}
	const alert = 0 // the handshake fails
	if code, err := ask(admin.Client(""), "/v1/catalog/nodes", ""); code != 200 {
		t.Fatalf("an admin: %d %v", code, err)
	}
	for name, test := range map[string]struct {
		config *tls.Config
		path   string
		token  string
		code   int
		reason string
	}{
		"an unauthenticated caller": {withCertificate(admin.Client(""), nil), "/v1/catalog/nodes", "", 403, "unauthenticated"},
		"an unknown token":          {withCertificate(admin.Client(""), nil), "/v1/catalog/nodes", "made-up", 403, "token"},
		"a token without rights":    {withCertificate(admin.Client(""), nil), "/v1/kv/a", none, 403, "acl"},
		"a wrong CA":                {withCertificate(admin.Client(""), wrong.Client("")), "/v1/catalog/nodes", "", alert, "tls"},
		"an expired certificate":    {withCertificate(admin.Client(""), expired), "/v1/catalog/nodes", "", alert, "tls"},
	} {
		before := c.counted(c.server.metrics.refused, test.reason)
		code, err := ask(test.config, test.path, test.token)
		if code != test.code || (test.code == alert) != (err != nil) {
			t.Errorf("%s: %d %v, want %d", name, code, err, test.code)
		}
		eventually(t, name+" is counted", func() bool { return c.counted(c.server.metrics.refused, test.reason) > before })
	}
}

// expiredTLS is the TLS configuration of an admin whose certificate has ended.
func expiredTLS(t *testing.T, authority string) *tls.Config {
	t.Helper()
	// A slow machine finds one of a second expired before it is loaded.
	for validity := time.Second; validity < time.Minute; validity *= 2 {
		dir := t.TempDir()
		err := peer.Issue(authority, dir, peer.Request{Identity: peer.Identity{Name: "fbadmin2", Role: peer.RoleAdmin}, Validity: validity})
		if err != nil {
			t.Fatal(err)
		}
		made, err := peer.Load(dir)
		if err != nil {
			t.Log(err)
			continue
		}
		eventually(t, "the certificate has ended", func() bool { return time.Now().After(made.Expires()) })
		return made.Client("")
	}
	t.Fatal("no certificate was good for as long as it takes to load it")
	return nil
}

func TestABodyOfAGigabyteIsNotRead(t *testing.T) {
	c := newCell(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, test := range map[string]struct {
		announced int64
		path      string
	}{
		"announced": {1 << 30, "/v1/kv/a"}, "in chunks": {-1, "/v1/kv/a"},
		"a registration": {1 << 30, "/v1/agent/service/register"}, "a transaction": {-1, "/v1/txn"},
		"a policy": {-1, "/v1/agent/check/register"}, "a session": {1 << 30, "/v1/session/create"},
	} {
		counted := c.counted(c.server.metrics.refused, "body")
		body := &zeros{}
		request, err := http.NewRequestWithContext(t.Context(), "PUT", c.url+test.path, io.LimitReader(body, 1<<30))
		if err != nil {
			t.Fatal(err)
		}
		request.ContentLength = test.announced
		response, err := http.DefaultClient.Do(request)
		if err == nil { // the client may learn of it while it still writes
			response.Body.Close()
			if response.StatusCode != 413 {
				t.Errorf("%s: %d", name, response.StatusCode)
			}
		}
		if sent := body.read.Load(); sent > 64<<20 {
			t.Errorf("%s: %d bytes were sent before it was refused", name, sent)
		}
		eventually(t, name+" is counted", func() bool { return c.counted(c.server.metrics.refused, "body") == counted+1 })
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}

func TestAQueryOfAMegabyteIsRefusedAndCounted(t *testing.T) {
	c := newCell(t)
	machine, began := stall.Test(t, ""), time.Now()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, _ = fmt.Fprintf(conn, "GET /v1/kv/a?x=%s HTTP/1.1\r\nHost: localhost\r\n\r\n", strings.Repeat("q", 1<<20)) // refused half-way
	}()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && !strings.Contains(line, "431") {
		t.Errorf("%q", line)
	}
	slow := 0 // it is that, too, where the machine stood still for much of what headers may take
	eventually(t, "it is counted", func() bool {
		slow = c.counted(c.server.metrics.refused, "slow")
		return c.counted(c.server.metrics.refused, "malformed")+slow == 1
	})
	counted := time.Now()
	if stood := machine.Within(began, counted); slow > 0 && (counted.Sub(began) < headerTimeout || stood < headerTimeout/2) {
		t.Errorf("after %v, of which the machine stood still for %v, it is counted as slow", counted.Sub(began), stood)
	}
	if code, _, _ := c.get("/v1/kv/a?x=" + strings.Repeat("q", maxURL)); code != 414 || c.counted(c.server.metrics.refused, "url") != 1 {
		t.Errorf("one of 8 KiB: %d", code)
	}
}

// A body that nobody wants must not hold its connection either: net/http reads
// what is left of it before it sends the answer.
func TestABodyThatNobodyReadsHoldsNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for bodyTimeout")
	}
	t.Parallel()
	c := newCell(t)
	ends := make(chan string, 3)
	requests := []string{"PUT /v1/agent/leave", "GET /v1/status/leader", "POST /v1/nothing"}
	for _, request := range requests {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			_, _ = io.WriteString(conn, request+" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
			_ = conn.SetReadDeadline(time.Now().Add(2 * bodyTimeout))
			text, err := io.ReadAll(conn)
			if err != nil {
				ends <- request + ": " + err.Error()
				return
			}
			ends <- string(text[:min(len(text), 12)])
		}()
	}
	for range requests {
		if end := <-ends; !strings.HasPrefix(end, "HTTP/1.1 ") {
			t.Error(end)
		}
	}
}

// Slow-loris: many connections that never end their headers, or their body.
func TestSlowConnectionsAreClosedAndCounted(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for headerTimeout")
	}
	t.Parallel()
	c := newCell(t)
	const many = 50
	closed := make(chan error, many)
	for range many {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go drip(t, conn)
		go func() {
			_ = conn.SetReadDeadline(time.Now().Add(3 * headerTimeout))
			_, err := io.ReadAll(conn)
			closed <- err
		}()
	}
	for range many {
		if err := <-closed; err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("the connection was kept: %v", err)
		}
	}
	eventually(t, "they are counted", func() bool { return c.counted(c.server.metrics.refused, "slow") == many })
	if code, _, _ := c.get("/v1/status/leader"); code != 200 {
		t.Errorf("somebody else: %d", code)
	}
}

// drip sends a byte of a header now and then, for as long as it is let.
func drip(t *testing.T, conn net.Conn) {
	if _, err := io.WriteString(conn, "GET /v1/catalog/nodes HTTP/1.1\r\nHost: localhost\r\nX-Slow: "); err != nil {
		return
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if _, err := io.WriteString(conn, "x"); err != nil || t.Context().Err() != nil {
			return
		}
	}
}

func TestASlowBodyIsRefusedAndCounted(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for bodyTimeout")
	}
	t.Parallel()
	c := newCell(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * bodyTimeout)); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "408") {
		t.Errorf("%q %v", line, err)
	}
	eventually(t, "it is counted", func() bool { return c.counted(c.server.metrics.refused, "slow") == 1 })
}

func TestAnOrdinaryClientIsNotCountedAsRefused(t *testing.T) {
	c := newCell(t)
	client := &http.Client{Transport: &http.Transport{}}
	for range 3 {
		response, err := client.Get(c.url + "/v1/status/leader")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	client.CloseIdleConnections()
	if conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://")); err == nil {
		conn.Close() // as a port that is probed
	}
	c.stop()
	for _, reason := range []string{"slow", "malformed"} {
		if got := c.counted(c.server.metrics.refused, reason); got != 0 {
			t.Errorf("%d counted as %s", got, reason)
		}
	}
}

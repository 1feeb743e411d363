package api

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/state"
)

// rawConn speaks HTTP/1 by hand, so that a test sees what is on the connection.
type rawConn struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func (c *cell) raw() *rawConn {
	c.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return &rawConn{c.t, conn, bufio.NewReader(conn)}
}

func (r *rawConn) send(text string) {
	r.t.Helper()
	if _, err := io.WriteString(r, text); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rawConn) answer() (*http.Response, string) {
	r.t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(patience)) // a socket that is open takes it
	response, err := http.ReadResponse(r.in, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return response, string(body)
}

func waitingFor(key string, index uint64, headers string) string {
	return "GET /v1/kv/" + key + "?raw&wait=10m&index=" + strconv.FormatUint(index, 10) + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n"
}

func set(key, value string) state.Command {
	return state.KV{Verb: state.Set, Entry: state.Entry{Key: key, Value: []byte(value)}}
}

// No handler and no goroutine of net/http waits with a query.
func TestAQueryThatWaitsIsOutOfItsHandler(t *testing.T) {
	c := newCell(t)
	index := c.apply(set("a", "one"))
	r := c.raw()
	r.send(waitingFor("a", index, ""))
	c.blocked(1)
	eventually(t, "the query is parked", func() bool {
		stacks := goroutines(t)
		return strings.Contains(stacks, "api.(*parked).wait") && !strings.Contains(stacks, "api.(*Server).dispatch")
	})
	c.apply(set("a", "two"))
	if response, body := r.answer(); response.StatusCode != 200 || body != "two" {
		t.Errorf("%d %q", response.StatusCode, body)
	}
	c.blocked(0)
}

// One connection waits, is answered and waits again; what the client sends while
// it waits is read after the answer.
func TestAParkedConnectionServesOn(t *testing.T) {
	c := newCell(t)
	index := c.apply(set("a", "zero"))
	r := c.raw()
	for _, value := range []string{"one", "two", "three"} {
		r.send(waitingFor("a", index, ""))
		c.blocked(1)
		r.send("GET /v1/status/leader HTTP/1.1\r\nHost: localhost\r\n\r\n")
		index = c.apply(set("a", value))
		if response, body := r.answer(); body != value || response.Header.Get("X-Consul-Index") != strconv.FormatUint(index, 10) {
			t.Errorf("%d %q at %s, want %q at %d", response.StatusCode, body, response.Header.Get("X-Consul-Index"), value, index)
		}
		if _, body := r.answer(); !strings.Contains(body, "10.1.0.1:8300") {
			t.Errorf("the request after it: %q", body)
		}
	}
	if got := c.counted(c.server.metrics.requests, "/v1/kv/", "GET", "200"); got != 3 {
		t.Errorf("%d requests counted, want 3", got)
	}
	if changed, unchanged := c.wakes("changed"), c.wakes("unchanged"); changed != 3 || unchanged != 0 {
		t.Errorf("%d wakes and %d for nothing are counted, want 3 and none", changed, unchanged)
	}
	r.send(waitingFor("a", index, "Connection: close\r\n"))
	c.blocked(1)
	c.apply(set("a", "last"))
	if _, body := r.answer(); body != "last" {
		t.Errorf("the last: %q", body)
	}
	if _, err := r.in.ReadByte(); err != io.EOF {
		t.Errorf("the client asked to close: %v", err)
	}
}

// The limit of a wait counts from when the query came, however often it looked again.
func TestWakesDoNotLengthenTheWait(t *testing.T) {
	c := newCell(t)
	c.apply(set("a", "one"), web("n1", "10.1.0.1", state.Passing))
	r := c.raw()
	began := time.Now()
	// An index that is never reached: it looks again at each change.
	r.send("GET /v1/health/service/web?wait=900ms&index=999999 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	answered := make(chan int, 1)
	go func() {
		defer close(answered) // also when there is no answer
		response, _ := r.answer()
		answered <- response.StatusCode
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for waits := true; waits; {
		select {
		case code := <-answered:
			waits = false
			if took := time.Since(began); code != 200 || took < 900*time.Millisecond {
				t.Errorf("%d after %v, want 200 after 0.9 s", code, took)
			}
		case <-tick.C:
			c.apply(web("n1", "10.1.0.1", state.Critical), web("n1", "10.1.0.1", state.Passing))
		}
	}
	c.blocked(0)
	if got := c.counted(c.server.metrics.blocked, "timeout"); got != 1 {
		t.Errorf("%d timeouts counted", got)
	}
}

func TestAParkedQueryWithMoreThanTheServerIsToldOnce(t *testing.T) {
	c := newCell(t, func(config *Config, _ *Deps) { config.MaxBlocking = 2 })
	index := c.apply(set("a", "one"))
	for i := range 20 { // its place is free each time
		r := c.raw()
		r.send(waitingFor("a", index, ""))
		c.blocked(1)
		if i%2 == 0 {
			r.Close()
		} else {
			index = c.apply(set("a", strconv.Itoa(i)))
			if _, body := r.answer(); body != strconv.Itoa(i) {
				t.Fatalf("round %d: %q", i, body)
			}
		}
		c.blocked(0)
	}
	if len(c.server.slots) != 0 {
		t.Errorf("%d places are taken by nobody", len(c.server.slots))
	}
}

// A request that is longer when it is written anew waits where it was read; one
// that the server refuses to read again gives its place back all the same.
func TestNoParkedQueryKeepsAPlaceThatNobodyHas(t *testing.T) {
	c := newCell(t)
	index := c.apply(set("a", "one"))
	r := c.raw()
	r.send("GET /v1/kv/a?raw&wait=1ms&index=" + strconv.FormatUint(index, 10) + " HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("a:\r\n", 16000) + "\r\n")
	if response, body := r.answer(); response.StatusCode != 200 || body != "one" {
		t.Errorf("%d %q", response.StatusCode, body)
	}
	c.blocked(0)
	eventually(t, "its place is free", func() bool { return len(c.server.slots) == 0 })

	c.server.slots <- struct{}{}
	one := &place{server: c.server}
	one.wait()
	waiting := newLot(nil, nil)
	waiting.enter()
	conn, other := net.Pipe()
	defer other.Close()
	p := &parked{Conn: conn, lot: waiting}
	p.place.Store(one)
	for range 2 {
		_ = p.Close() // a pipe can be closed twice
	}
	if len(c.server.slots) != 0 || waiting.waiting != 0 {
		t.Errorf("%d places and %d of the lot are taken by nobody", len(c.server.slots), waiting.waiting)
	}
}

// What the server reads again is what it read.
func TestARequestIsReadAgainAsItCame(t *testing.T) {
	for _, text := range []string{
		"GET /v1/kv/a%2Fb//c?index=3&wait=1m HTTP/1.1\r\nHost: node:8500\r\nX-Consul-Token: secret\r\nAccept: a\r\nAccept: b\r\nConnection: close\r\n\r\n",
		"GET http://node/v1/kv/a?index=1 HTTP/1.1\r\nHost: other\r\nContent-Length: 0\r\n\r\n",
		"GET /v1/kv/a?index=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"HEAD /v1/kv/a?index=1 HTTP/1.1\r\nHost:\r\nPragma: no-cache\r\n\r\n",
	} {
		read := func(text []byte) *http.Request {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			return r
		}
		first := read([]byte(text))
		again := read(asText(first))
		type seen struct {
			Method, URI, Proto, Host string
			Close                    bool
			Length                   int64
			Header                   http.Header
		}
		of := func(r *http.Request) seen {
			return seen{r.Method, r.RequestURI, r.Proto, r.Host, r.Close, r.ContentLength, r.Header}
		}
		if diff := cmp.Diff(of(first), of(again)); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

// Over TLS who asked is known when the connection comes back, too.
func TestAParkedConnectionKeepsItsCertificate(t *testing.T) {
	shown := make(chan *tls.ConnectionState, 1)
	c := newCell(t)
	index := c.apply(set("a", "one"))
	server, client := net.Pipe()
	defer client.Close()
	known := &tls.ConnectionState{ServerName: "n1"}
	handler := c.server.parking(fromLoopback, make(chan struct{}), nil)
	back := &parked{Conn: server, lot: newLot(server.LocalAddr(), nil), tls: known, unread: []byte(waitingFor("a", index-1, ""))}
	conns := &connections{server: c.server}
	h := &http.Server{ConnContext: conns.context, ConnState: conns.state, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r)
		shown <- r.TLS
	})}
	go func() { _ = h.Serve(back.lot) }() // until the lot is closed
	defer back.lot.Close()
	back.lot.back <- back
	_ = client.SetReadDeadline(time.Now().Add(patience)) // a pipe takes it
	response, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := h.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-shown; got != known {
		t.Errorf("the handler saw %v", got)
	}
}

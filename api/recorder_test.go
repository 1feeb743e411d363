package api

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/peer"
)

// limits counts the deadlines that a request is given. In HTTP/2 each is a
// message to the connection's goroutine, which many requests share.
type limits struct {
	*httptest.ResponseRecorder
	read, write []time.Time
}

func (l *limits) SetReadDeadline(at time.Time) error {
	l.read = append(l.read, at)
	return nil
}

func (l *limits) SetWriteDeadline(at time.Time) error {
	l.write = append(l.write, at)
	return nil
}

// Six of them for each write were more work than what the API does with it. In
// virtual time: a limit that is a second old is set anew.
func TestAWriteOverHTTP2IsGivenEachLimitOnce(t *testing.T) { synctest.Test(t, writeUnderLimits) }

func writeUnderLimits(t *testing.T) {
	c := bench(t)
	for _, proto := range []int{1, 2} {
		l := &limits{ResponseRecorder: httptest.NewRecorder()}
		request := httptest.NewRequestWithContext(t.Context(), "PUT", "/v1/kv/k", strings.NewReader("v"))
		request.Host, request.ProtoMajor = "localhost", proto
		c.server.handler(fromSocket, nil).ServeHTTP(l, request)
		if l.Code != http.StatusOK || l.Body.String() != "true" {
			t.Fatalf("HTTP/%d: %d %q", proto, l.Code, l.Body)
		}
		if proto == 2 {
			if len(l.read) != 1 || l.read[0].IsZero() || len(l.write) != 1 || l.write[0].IsZero() {
				t.Errorf("limits of reading %v, of writing %v; want one of each", l.read, l.write)
			}
			continue
		}
		// A connection of HTTP/1 has its limits from one request to the next.
		if n := len(l.read); n == 0 || !l.read[n-1].IsZero() {
			t.Errorf("HTTP/1: limits of reading %v; the last must take it away", l.read)
		}
		if n := len(l.write); n < 2 || !l.write[0].IsZero() || l.write[n-1].IsZero() {
			t.Errorf("HTTP/1: limits of writing %v; want what the last request left taken away, and one for the answer", l.write)
		}
	}
}

// An answer in parts, each of which the client may take its time for.
func TestALimitIsSetAnewForALaterPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &limits{ResponseRecorder: httptest.NewRecorder()}
		c := &call{w: &recorder{ResponseWriter: l, streams: true}}
		for range 4 {
			c.w.extend(writeTimeout)
			c.hurry(bodyTimeout)
			time.Sleep(slack * 3 / 4)
		}
		if len(l.write) != 2 || len(l.read) != 2 {
			t.Errorf("limits of writing %v, of reading %v; want one for each two parts", l.write, l.read)
		}
		c.w.wait()
		c.w.extend(writeTimeout)
		if n := len(l.write); n != 4 || !l.write[2].IsZero() || l.write[3].IsZero() {
			t.Errorf("limits of writing %v; want the third to take it away for a wait, and the fourth for what comes after", l.write)
		}
	})
}

// overHTTP2 serves a bench by HTTP/2 in virtual time while do runs.
func overHTTP2(t *testing.T, do func(t *testing.T, c *cell, via *http.Transport)) {
	authority := filepath.Join(t.TempDir(), "ca")
	server := trust(t, authority, "foobar", "n1", peer.RoleServer)
	admin := trust(t, authority, "foobar", "fbadmin1", peer.RoleAdmin)
	synctest.Test(t, func(t *testing.T) {
		c := bench(t)
		c.server.tls, c.server.log = server.ServerOptional(), discard()
		c.server.admin = func(*http.Request) bool { return true }
		ctx, stop := context.WithCancel(t.Context())
		pipe, ended := newPipes(), make(chan error, 1)
		go func() { ended <- c.server.serve(ctx, listener{pipe, fromTLS}) }()
		transport := &http.Transport{DialContext: pipe.dial, TLSClientConfig: admin.Client(""), ForceAttemptHTTP2: true}
		do(t, c, transport)
		transport.CloseIdleConnections()
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// The limit that is set once must be there, or a client that sends half a body
// would keep its handler for good.
func TestASlowBodyOverHTTP2IsRefused(t *testing.T) {
	overHTTP2(t, func(t *testing.T, c *cell, via *http.Transport) {
		half, rest := io.Pipe()
		go func() { _, _ = rest.Write([]byte("half of ")) }()
		began := time.Now()
		request, err := http.NewRequestWithContext(t.Context(), "PUT", "https://n1/v1/kv/k", half)
		if err != nil {
			t.Fatal(err)
		}
		response, err := via.RoundTrip(request)
		if err != nil {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
		response.Body.Close()
		rest.Close()
		if took := time.Since(began); response.ProtoMajor != 2 || response.StatusCode != http.StatusRequestTimeout || took > bodyTimeout+time.Second {
			t.Errorf("%s %s after %v; want 408 after %v", response.Proto, response.Status, took, bodyTimeout)
		}
	})
}

// The limit of a body that was read is left in force: were it more than that of
// the body, an answer that takes longer would be lost.
func TestAnAnswerOverHTTP2MayTakeLongerThanTheBodyMight(t *testing.T) {
	overHTTP2(t, func(t *testing.T, c *cell, via *http.Transport) {
		c.server.routes.exact["/v1/slow"] = route{"/v1/slow", methods{"PUT": {None, nil, repeatSlowly}}}
		request, err := http.NewRequestWithContext(t.Context(), "PUT", "https://n1/v1/slow", strings.NewReader("v"))
		if err != nil {
			t.Fatal(err)
		}
		response, err := via.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK || string(text) != `"v"` {
			t.Errorf("%s %q %v", response.Status, text, err)
		}
	})
}

// repeatSlowly answers with the body, long after it came.
func repeatSlowly(s *Server, c *call) error {
	body, err := s.body(c, 100)
	if err != nil {
		return err
	}
	time.Sleep(3 * bodyTimeout)
	if c.Context().Err() != nil {
		return errGone
	}
	return s.reply(c, string(body))
}

// The list of what is not offered, made for each request, was a fortieth of all
// memory that a server which is written to allocated.
func TestAPathIsFoundWithoutMemory(t *testing.T) {
	table := newRouteTable(routes())
	if n := testing.AllocsPerRun(100, func() {
		found, rest, known := table.find("/v1/kv/a/b")
		if err := table.missing("/v1/kv/a/b", found, known); err != nil || rest != "a/b" {
			t.Fatal(rest, err)
		}
	}); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

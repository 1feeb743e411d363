package logrelay

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// roomOf is a connection that knows how much room its last read had.
type roomOf struct {
	net.Conn
	room atomic.Int64
}

func (r *roomOf) Read(b []byte) (int, error) {
	r.room.Store(int64(len(b)))
	return r.Conn.Read(b)
}

// pipeClient is a RELP client of a stage's relay, in virtual time.
type pipeClient struct {
	net.Conn
	t       *testing.T
	session relp.Client
	server  *roomOf
	answers atomic.Int64 // bytes
}

// connect begins a session. The relay knows these lines as the last that are
// stored of the client.
func (x *stage) connect(known ...string) *pipeClient {
	x.t.Helper()
	x.s.journal, x.s.recent = x.j, newRecent()
	here, there := net.Pipe()
	for _, line := range known {
		x.s.recent.add(journal.Record{Time: time.Now().UnixNano(), Source: addrOf(there.RemoteAddr()), Input: viaRELP, Data: []byte(line)})
	}
	c := &pipeClient{Conn: here, t: x.t, server: &roomOf{Conn: there}}
	ctx, end := context.WithCancel(x.t.Context())
	x.group.Go(func() {
		defer there.Close()
		_ = x.s.serveRELP(ctx, c.server, viaRELP)
	})
	x.group.Go(func() {
		room := make([]byte, 4096)
		for {
			n, err := here.Read(room)
			c.answers.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	before := x.end
	x.end = func() {
		end()
		_ = here.Close()
		before()
	}
	c.send(c.session.AppendOpen(nil))
	return c
}

func (c *pipeClient) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

// TestAFrameThatTricklesInHoldsNoneBeforeItBack, in virtual time: a line that
// may have been sent again is answered after a second, though bytes of the next
// come all the time. A patience that each byte renews never ends.
func TestAFrameThatTricklesInHoldsNoneBeforeItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer func() { x.end() }()
		c := x.connect("one", "two")
		before := c.answers.Load()
		c.send(c.session.AppendLine(nil, []byte("one"))) // two may follow
		if c.answers.Load() != before {
			t.Fatal("it is answered though it is not known whether it is here")
		}
		for _, b := range c.session.AppendLine(nil, bytes.Repeat([]byte("x"), 5)) {
			c.send([]byte{b})
			<-time.After(decideWithin / 5)
			synctest.Wait()
			if c.answers.Load() != before {
				return
			}
		}
		t.Error("it is not answered before the next is whole")
	})
}

// TestFramesThatAreHeldBackTakeNoMoreThanAnAppend: 128 of the longest are more
// than the journal takes at once, and the client could never send them.
func TestFramesThatAreHeldBackTakeNoMoreThanAnAppend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer func() { x.end() }()
		var known []string
		for n := range relp.Window {
			known = append(known, fmt.Sprint(n, " ", string(bytes.Repeat([]byte("x"), 100<<10))))
		}
		c := x.connect(known...)
		before := c.answers.Load()
		for _, line := range known[:12] {
			c.send(c.session.AppendLine(nil, []byte(line)))
		}
		if c.answers.Load() == before {
			t.Error("more than a MiB is held back")
		}
	})
}

// TestAnIdleClientKeepsNoMemoryOfABurst, and a client that goes on sending is
// served as before.
func TestAnIdleClientKeepsNoMemoryOfABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer func() { x.end() }()
		c := x.connect()
		for range 3 {
			var burst []byte
			for n := range 100 {
				burst = c.session.AppendLine(burst, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn1 test: seq=%d. %s", n, bytes.Repeat([]byte("x"), 2000)))
			}
			c.send(burst)
			if room := c.server.room.Load(); room <= firstBuffer {
				t.Fatalf("the burst left a buffer of %d bytes: it shows nothing", room)
			}
			before := c.answers.Load()
			<-time.After(2 * idleAfter)
			synctest.Wait()
			if room := c.server.room.Load(); room > firstBuffer {
				t.Errorf("an idle client has a buffer of %d bytes", room)
			}
			c.send(c.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn1 test: seq=100.")))
			if c.answers.Load() == before {
				t.Error("what it sends then is not answered")
			}
		}
	})
}

// TestLongLinesOfAQueryAreBoundedInBytes: those that are put in order take so
// many bytes at most, however few they are.
func TestLongLinesOfAQueryAreBoundedInBytes(t *testing.T) {
	q := &search{}
	sent := 0
	for n := range 1000 {
		q.wait(numbered{&Entry{Time: time.Unix(int64(n), 0), Line: string(make([]byte, 128<<10))}, uint64(n)})
		for q.tooMany() {
			if e := q.oldest(); e.Time.Unix() != int64(sent) {
				t.Fatalf("line of %v in the place of %d", e.Time, sent)
			}
			sent++
		}
	}
	if held := len(q.waiting) * (128 << 10); held > reorderBytes || held < reorderBytes/2 {
		t.Errorf("%d bytes are held", held)
	}
	for len(q.waiting) > 0 {
		q.oldest()
	}
	if q.bytes != 0 {
		t.Errorf("%d bytes are counted of nothing", q.bytes)
	}
}

// TestAPlannedEndGivesAMomentToReadTheAnswers, in virtual time: before the connection
// is reset. It fails if it is as soon as the last answer was written: a client that
// looks at its connection now and then sends the lines again.
func TestAPlannedEndGivesAMomentToReadTheAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer func() { x.end() }()
		x.s.journal, x.s.recent = x.j, newRecent()
		here, there := net.Pipe()
		ctx, end := context.WithCancel(t.Context())
		defer end()
		x.group.Go(func() {
			defer there.Close()
			_ = x.s.serveRELP(ctx, there, viaRELP)
		})
		moment := make(chan time.Duration, 1)
		go func() {
			answered, room := time.Now(), make([]byte, 4096)
			for {
				if _, err := here.Read(room); err != nil {
					moment <- time.Since(answered)
					return
				}
				answered = time.Now()
			}
		}()
		var session relp.Client
		if _, err := here.Write(session.AppendLine(session.AppendOpen(nil), []byte("<13>Nov 25 12:00:00 cn1 test: last"))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		end()
		if took := <-moment; took < answersRead {
			t.Errorf("%v after the answer the connection ends, want %v at least", took, answersRead)
		}
	})
}

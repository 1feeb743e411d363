package raftstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// newRenewed is a network that only dials, in plain text.
func newRenewed(t *testing.T, wait time.Duration) *network {
	ending, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return &network{
		ending: ending, cancel: cancel, times: timings{transport: wait}, open: map[*stream]struct{}{},
		self: func() hello { return hello{Cluster: "foobar", Name: "fb1", ID: "id1", Store: ourStore} },
	}
}

// greeter answers greetings as the server id does, and hands each connection on.
type greeter struct {
	listener net.Listener
	came     chan net.Conn
	silent   atomic.Bool // it accepts, and says nothing
}

func newGreeter(t *testing.T, id string) *greeter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &greeter{listener: l, came: make(chan net.Conn, 16)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if !g.silent.Load() {
				_, err = readHello(conn)
				answer, err2 := verdict{ID: id, Store: ourStore}.encode()
				_, err3 := conn.Write(answer)
				if err := errors.Join(err, err2, err3); err != nil {
					t.Error(err)
				}
			}
			g.came <- conn
		}
	}()
	return g
}

// next is the next connection.
func (g *greeter) next(t *testing.T) net.Conn {
	t.Helper()
	select {
	case conn := <-g.came:
		t.Cleanup(func() { conn.Close() })
		return conn
	case <-time.After(soon):
		t.Fatalf("nobody came in %v", soon)
		return nil
	}
}

func dialled(t *testing.T, n *network, g *greeter, id string) (net.Conn, net.Conn) {
	t.Helper()
	conn, err := n.dialRaft(t.Context(), g.listener.Addr().String(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, g.next(t)
}

// ended waits until the other side has closed a connection.
func ended(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the old connection stays: %v", err)
	}
}

// talk sends a byte and waits for the other's.
func talk(t *testing.T, ours, theirs net.Conn) {
	t.Helper()
	buf := make([]byte, 1)
	err := ours.SetDeadline(time.Now().Add(soon))
	for _, way := range [][2]net.Conn{{ours, theirs}, {theirs, ours}} {
		_, err1 := way[0].Write([]byte{7})
		_, err2 := way[1].Read(buf)
		err = errors.Join(err, err1, err2)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A connection of Raft's goes on over another stream, and keeps its old one until
// the answer that it waits for is there.
func TestRenewedConnectionNeverBreaks(t *testing.T) {
	n, g := newRenewed(t, time.Minute), newGreeter(t, "id2")
	ours, old := dialled(t, n, g, "id2")
	talk(t, ours, old)
	renewed := make(chan struct{})
	if err := ours.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write([]byte{1}); err != nil { // a request begins
		t.Fatal(err)
	}
	go func() { defer close(renewed); n.renewRaft(t.Context()) }()
	fresh := g.next(t)
	buf := make([]byte, 1)
	if _, err := old.Read(buf); err != nil || buf[0] != 1 {
		t.Fatalf("the request: %v", err)
	}
	select {
	case <-renewed:
		t.Fatal("it was replaced before its answer")
	case <-time.After(3 * renewPoll): // it may look now and then
	}
	if _, err := old.Write([]byte{2}); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Read(buf); err != nil || buf[0] != 2 {
		t.Fatalf("the answer: %v", err)
	}
	<-renewed
	ended(t, old)
	talk(t, ours, fresh)
	ours.Close()
	ended(t, fresh)
	if n.renewRaft(t.Context()); len(n.open) != 0 || len(n.lines) != 0 {
		t.Errorf("what was closed is kept: %v %v", n.open, n.lines)
	}
}

// The next server's connections stay as they are until this one's are new, or
// can't be.
func TestConnectionsAreRenewedOneServerAtATime(t *testing.T) {
	t.Parallel()
	const wait = 5 * time.Second
	n, first, second := newRenewed(t, soon), newGreeter(t, "id1"), newGreeter(t, "id2")
	ours1, old1 := dialled(t, n, first, "id1")
	ours2, old2 := dialled(t, n, second, "id2")
	talk(t, ours1, old1)
	first.silent.Store(true)
	n.times.transport = wait
	renewed, begun := make(chan struct{}), time.Now()
	go func() { defer close(renewed); n.renewRaft(t.Context()) }()
	held := first.next(t) // the first server's, which gets no answer
	talk(t, ours2, old2)
	if came := len(second.came); came != 0 && time.Since(begun) < wait { // later it may be its turn
		t.Error("the second server is dialled while the first does not answer")
	}
	// It is given up, and what it has is closed: Raft dials it itself from now on.
	ended(t, old1)
	ended(t, held)
	fresh2 := second.next(t)
	<-renewed
	ended(t, old2)
	talk(t, ours2, fresh2)
}

// What carries many requests at a time can't be replaced between them: it is
// closed, and the next server's turn comes when this one has answered over a new
// connection.
func TestServerAnswersAnewBeforeTheNextIsRenewed(t *testing.T) {
	n, first, second := newRenewed(t, time.Minute), newGreeter(t, "id1"), newGreeter(t, "id2")
	piped, old1 := dialled(t, n, first, "id1")
	if err := piped.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, old2 := dialled(t, n, second, "id2")
	renewed := make(chan struct{})
	go func() { defer close(renewed); n.renewRaft(t.Context()) }()
	ended(t, old1)
	piped.Close()
	again, fresh1 := dialled(t, n, first, "id1") // as Raft does
	if len(second.came) != 0 {
		t.Error("the second server is dialled before the first answered")
	}
	talk(t, again, fresh1)
	second.next(t)
	<-renewed
	ended(t, old2)
}

// A connection that was begun with the old certificate is not kept: it came too
// late to be replaced.
func TestConnectionBegunBeforeARenewalIsMadeAgain(t *testing.T) {
	n, g := newRenewed(t, time.Minute), newGreeter(t, "id2")
	g.silent.Store(true)
	made := make(chan net.Conn)
	go func() {
		conn, err := n.dialRaft(t.Context(), g.listener.Addr().String(), "id2")
		if err != nil {
			t.Error(err)
		}
		made <- conn
	}()
	begun := g.next(t)
	g.silent.Store(false)
	n.renewRaft(t.Context())
	answer, err := verdict{ID: "id2", Store: ourStore}.encode()
	if err == nil {
		_, err = readHello(begun)
	}
	if err == nil {
		_, err = begun.Write(answer)
	}
	if err != nil {
		t.Fatal(err)
	}
	fresh := g.next(t)
	ended(t, begun)
	ours := <-made
	talk(t, ours, fresh)
	ours.Close()
}

// Heartbeats and messages, as Raft sends them, while the connections
// are renewed again and again: no heartbeat fails.
func TestNoHeartbeatIsLostWhileConnectionsAreRenewed(t *testing.T) {
	n, follower := newRenewed(t, time.Minute), newRenewed(t, time.Minute)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	follower.self = func() hello { return hello{Cluster: "foobar", Name: "fb2", ID: "id2", Store: ourStore} }
	follower.listener, follower.greeting = listener, map[string]int{}
	follower.times.greet = time.Minute
	follower.raft, follower.rpc = newStreamQueue(listener.Addr()), newStreamQueue(listener.Addr())
	quiet := newRaftLog(slog.New(slog.DiscardHandler), new(atomic.Bool))
	layer := func(n *network, q *streamQueue) *raft.NetworkTransport {
		return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: streamLayer{q, n}, MaxPool: 3, Timeout: time.Minute, Logger: quiet})
	}
	to := layer(follower, follower.raft)
	from := layer(n, newStreamQueue(listener.Addr()))
	go follower.serve()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case rpc := <-to.Consumer():
				rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() {
		from.Close()
		to.Close()
		from.CloseStreams()
		n.hangUp()
		follower.stop()
		close(done)
	})
	address := raft.ServerAddress("id2@" + listener.Addr().String())
	beat := func(entry uint64) error {
		return from.AppendEntries("id2", address, &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: entry}, new(raft.AppendEntriesResponse))
	}
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 3)
	for i := range uint64(3) {
		go func() {
			var err error
			for sent := 0; err == nil && (ctx.Err() == nil || sent < 100); sent++ {
				err = beat(i)
			}
			failed <- err
		}()
	}
	for range 20 {
		n.renewRaft(ctx)
	}
	cancel()
	for range 3 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.renewals != 20 || len(n.lines) == 0 || len(n.lines) > 3 || len(n.open) != len(n.lines) {
		t.Errorf("%d renewals; %d connections of Raft and %d in all, want at most one for each who sends", n.renewals, len(n.lines), len(n.open))
	}
}

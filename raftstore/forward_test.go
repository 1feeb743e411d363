package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// heldHandler is a leader that answers when the test lets it, each command with
// what it says.
type heldHandler struct {
	fakeHandler
	hold  chan struct{}
	taken atomic.Int32
}

func (h *heldHandler) proposeHere(_ context.Context, b []byte) (uint64, error) {
	h.taken.Add(1)
	<-h.hold
	var index uint64
	if _, err := fmt.Sscanf(string(b), "entry %d", &index); err != nil {
		return 0, &untouchedError{state.ErrNoLeader}
	}
	if index%10 == 3 {
		return index, state.ErrConflict
	}
	return index, nil
}

// newTestForwarder forwards to a handler; messages counts its messages by path.
func newTestForwarder(t *testing.T, h http.Handler) (f *forwarder, at string, messages func(path string) int) {
	t.Helper()
	var mu sync.Mutex
	count := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		count[r.URL.Path]++
		mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	client := new(rpcClient)
	client.via.Store(server.Client().Transport.(*http.Transport))
	f = &forwarder{client: client, ctx: t.Context(), timings: timings{outcome: soon, transport: soon}}
	return f, strings.TrimPrefix(server.URL, "http://"), func(path string) int {
		mu.Lock()
		defer mu.Unlock()
		return count[path]
	}
}

// Writes that wait together share messages, and each gets its own answer.
func TestForwardedWritesShareMessages(t *testing.T) {
	h := &heldHandler{hold: make(chan struct{})}
	f, at, messages := newTestForwarder(t, routes(h, 100))
	var group sync.WaitGroup
	const writes = 200
	for i := range uint64(writes) {
		group.Go(func() {
			a, err := f.carry(t.Context(), at, "leader", fmt.Appendf(nil, "entry %d", i+1))
			if a.Index != i+1 || (i+1)%10 == 3 != errors.Is(err, state.ErrConflict) || (i+1)%10 != 3 && err != nil {
				t.Errorf("write %d: %+v, %v", i+1, a, err)
			}
		})
	}
	// Who waits is told from who is about to be sent by the messages under way.
	deadline := time.Now().Add(soon)
	for waiting := 0; waiting+int(h.taken.Load()) < writes || h.taken.Load() < batchesUnderWay; {
		if time.Now().After(deadline) {
			t.Fatalf("%d writes reached the leader, %d wait; %d messages should be under way", h.taken.Load(), waiting, batchesUnderWay)
		}
		pause(time.Millisecond)
		f.mu.Lock()
		if l := f.lane; l != nil {
			l.mu.Lock()
			waiting = len(l.waiting)
			l.mu.Unlock()
		}
		f.mu.Unlock()
	}
	close(h.hold)
	group.Wait()
	if n := messages(pathProposeMany); n > writes/4 {
		t.Errorf("%d writes took %d messages", writes, n)
	}
}

// A leader of an earlier version gets the writes one at a time, and none is lost
// or of unknown outcome over it.
func TestLeaderOfAnEarlierVersionGetsWritesOneAtATime(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathPropose, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(answer{Index: 5})
	})
	f, at, messages := newTestForwarder(t, mux)
	if _, err := f.carry(t.Context(), at, "leader", []byte("x")); !untouched(err) {
		t.Errorf("the write that found it out: %v, which is not surely without effect", err)
	}
	for range 3 {
		if a, err := f.carry(t.Context(), at, "leader", []byte("x")); err != nil || a.Index != 5 {
			t.Errorf("%+v, %v", a, err)
		}
	}
	if many, one := messages(pathProposeMany), messages(pathPropose); many != 1 || one != 3 {
		t.Errorf("%d and %d messages", many, one)
	}
}

// Of reads that wait at the same time one asks for all, and none is answered by a
// question that was put before it.
func TestReadsShareAQuestionThatIsPutAfterThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which knows when all of them wait
		var asked atomic.Uint64
		hold := make(chan struct{})
		mux := http.NewServeMux()
		mux.HandleFunc("POST "+pathReadIndex, func(w http.ResponseWriter, _ *http.Request) {
			n := asked.Add(1)
			<-hold
			_ = json.NewEncoder(w).Encode(answer{Index: n})
		})
		w := newWires()
		leader, follower, server := w.end("leader:80"), w.end("follower"), &http.Server{Handler: mux}
		var served, group sync.WaitGroup
		served.Go(func() { _ = server.Serve(leader) })
		via := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			return follower.Dial(raft.ServerAddress("@"+address), 0)
		}}
		client := new(rpcClient)
		client.via.Store(via)
		f := &forwarder{client: client, ctx: t.Context(), timings: timings{outcome: soon, transport: soon}}
		read := func(least uint64) {
			group.Go(func() {
				if index, err := f.readIndex(t.Context(), "leader:80", "leader"); err != nil || index < least {
					t.Errorf("index %d, %v; it may be answered by question %d at the earliest", index, err, least)
				}
			})
		}
		read(1)
		synctest.Wait()
		for range 50 {
			read(2)
		}
		synctest.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("%d questions while the first is not answered", n)
		}
		close(hold)
		group.Wait()
		if n := asked.Load(); n != 2 {
			t.Errorf("51 reads, of which 50 waited, took %d questions, want 2", n)
		}
		via.CloseIdleConnections()
		server.Close()
		served.Wait()
	})
}

// A message that is lost on its way leaves the outcome open; one that never left
// does not.
func TestForwardedWriteIsRepeatedOnlyWhenItNeverLeft(t *testing.T) {
	f, at, _ := newTestForwarder(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	if _, err := f.carry(t.Context(), at, "leader", []byte("x")); err == nil || untouched(err) {
		t.Errorf("the leader had it: %v", err)
	}
	f.client.wire = func(string, func() error) error { return &dialError{to: at, err: errors.New("no route")} }
	if _, err := f.carry(t.Context(), at, "leader", []byte("x")); !untouched(err) {
		t.Errorf("there was no connection: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.client.wire = func(string, func() error) error {
		cancel()
		<-t.Context().Done()
		return nil
	}
	if _, err := f.carry(ctx, at, "leader", []byte("x")); !errors.Is(err, context.Canceled) || untouched(err) {
		t.Errorf("nobody waits any more: %v", err)
	}
}

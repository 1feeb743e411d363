package logrelay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// fakeReceiver is a node that takes one connection.
type fakeReceiver struct {
	list net.Listener
	err  error // of the connection, once done is closed
	done chan struct{}
}

// receives answers a greeting with next, and reads shipments up to the first with
// lines. stores: it answers that one, and stays until the sender ends.
func receives(t *testing.T, n *node, next uint64, stores bool) *fakeReceiver {
	t.Helper()
	list, err := tls.Listen("tcp", netip.AddrPortFrom(n.addr, testReplica).String(), n.deps.ReplicaTLS)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeReceiver{list: list, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.err = f.serve(next, stores)
	}()
	t.Cleanup(f.end)
	return f
}

func (f *fakeReceiver) serve(next uint64, stores bool) error {
	conn, err := f.list.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := readGreeting(conn); err != nil {
		return err
	}
	if _, err := conn.Write(binary.LittleEndian.AppendUint64(nil, next)); err != nil {
		return err
	}
	var buf bytes.Buffer
	for {
		s, err := readShipment(conn, &buf)
		if err != nil {
			return err
		}
		if s.count == 0 {
			continue
		}
		if !stores {
			return nil
		}
		if _, err := conn.Write(binary.LittleEndian.AppendUint64(nil, s.end)); err != nil {
			return err
		}
		for err == nil { // until the sender ends
			_, err = readShipment(conn, &buf)
		}
		return nil
	}
}

func (f *fakeReceiver) end() {
	_ = f.list.Close()
	<-f.done
}

// TestANodeIsBelievedOnceItHasStoredLines: another node says that it has lines with
// numbers that are given twice. It fails if it is believed by that alone, if it is
// not once it has stored what came after, or if one that has none of those numbers is
// not at once.
func TestANodeIsBelievedOnceItHasStoredLines(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	j, log := newJournal(t), slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { _ = j.Run(ctx) })
	t.Cleanup(func() { stop(); group.Wait() })
	lines := func() {
		t.Helper()
		var b journal.Batch
		for range 10 {
			b.Add(journal.Record{Time: 1, Data: []byte("<13>Nov 25 12:00:00 cn01 test: a line")})
		}
		commit, err := j.Append(t.Context(), &b)
		if err == nil {
			err = commit.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	lines()
	base := j.End()
	lines()
	cursor, err := j.Cursor("replica", false)
	if err != nil {
		t.Fatal(err)
	}
	begins := func() *shipper {
		s := &shipper{
			node: "fb1", port: testReplica, tls: all[0].deps.PeerTLS, journal: j, cursor: cursor, log: log,
			replicas: &replicas{
				patience: time.Minute, board: health.NewBoard(time.Now, nil, nil), log: log, end: j.End, changed: make(chan struct{}),
			},
			renumbered: newRenumbered(t.TempDir(), log),
		}
		s.renumbered.Base = base
		return s
	}
	meets := func(s *shipper, next uint64, stores bool) {
		t.Helper()
		f := receives(t, all[1], next, stores)
		shipping, end := context.WithCancel(t.Context())
		defer end()
		ended := make(chan error, 1)
		go func() { ended <- s.ship(shipping, Other{"fb2", all[1].addr}, func() {}) }()
		if stores {
			eventually(t, time.Minute, "the sender has read the answer", func() error {
				s.replicas.mu.Lock()
				defer s.replicas.mu.Unlock()
				if s.replicas.next < j.End() {
					return fmt.Errorf("the other node has all before %d of %d", s.replicas.next, j.End())
				}
				return nil
			})
			end()
		}
		err := <-ended
		if f.end(); f.err != nil {
			t.Fatalf("the receiver: %v; the sender: %v", f.err, err)
		}
	}
	s := begins()
	meets(s, base+5, false)
	if got := s.renumbered.before("fb2"); got != base {
		t.Errorf("it has stored nothing, and is believed up to %d, want %d", got, base)
	}
	meets(s, base+5, true)
	if got := s.renumbered.before("fb2"); got != math.MaxUint64 {
		t.Errorf("it has stored lines, and is believed up to %d only", got)
	}
	lines() // those before are kept no more
	s = begins()
	meets(s, base, false)
	if got := s.renumbered.before("fb2"); got != math.MaxUint64 {
		t.Errorf("it has none of the numbers that are given twice, and is believed up to %d only", got)
	}
}

package logrelay

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// session is a shipper that hears the answers of another node, which the test
// gives. It lives in a bubble of synctest.
type session struct {
	*shipper
	board *health.Board
	group sync.WaitGroup
	ends  []func()
}

// newSession has a journal that runs until the test's function ends it.
func newSession(t *testing.T, patience time.Duration) (s *session, end func()) {
	t.Helper()
	j := newJournal(t)
	cursor, err := j.Cursor("replica", false)
	if err != nil {
		t.Fatal(err)
	}
	s = &session{board: health.NewBoard(time.Now, nil, nil)}
	log := slog.New(slog.DiscardHandler)
	s.shipper = &shipper{journal: j, cursor: cursor, log: log, replicas: &replicas{
		patience: patience, board: s.board, log: log, end: j.End, changed: make(chan struct{}),
	}}
	ctx, stop := context.WithCancel(t.Context())
	s.group.Go(func() { _ = j.Run(ctx) })
	return s, func() {
		stop()
		for _, end := range s.ends {
			end()
		}
		s.group.Wait()
	}
}

// lines makes some durable here.
func (s *session) lines(t *testing.T, count int) {
	t.Helper()
	var b journal.Batch
	for range count {
		b.Add(journal.Record{Time: time.Now().UnixNano(), Data: []byte("<13>Nov 25 12:00:00 cn01 test: a line")})
	}
	commit, err := s.journal.Append(t.Context(), &b)
	if err == nil {
		err = commit.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// acknowledges tells whether lines before end may be acknowledged at once.
func (s *session) acknowledges(t *testing.T, end uint64) bool {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.replicas.reach(ctx, end) }()
	synctest.Wait()
	select {
	case err := <-done:
		return err == nil
	default:
		cancel()
		<-done
		return false
	}
}

// hear begins a session; ended gives its end.
func (s *session) hear(from uint64) (answer func(next uint64), hangUp func(), ended chan error) {
	here, there := net.Pipe()
	ended = make(chan error, 1)
	s.group.Go(func() {
		defer here.Close()
		ended <- s.answers(here, from, func(uint64) {})
	})
	synctest.Wait()
	answer = func(next uint64) {
		_, _ = there.Write(binary.LittleEndian.AppendUint64(nil, next))
		synctest.Wait()
	}
	hangUp = func() { _ = there.Close(); synctest.Wait() }
	s.ends = append(s.ends, hangUp)
	return answer, hangUp, ended
}

// TestABusyNodeWaitsForTheOtherAgainAfterAnOutage: lines come faster than any
// answer, so that the other node never has all lines of the moment.
func TestABusyNodeWaitsForTheOtherAgainAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, end := newSession(t, replicaPatience)
		defer end()
		s.lines(t, 100)
		if err := s.replicas.reach(t.Context(), s.journal.End()); err != nil || len(s.board.Conditions()) != 1 {
			t.Fatalf("%v, %v", err, s.board.Conditions())
		}
		for session := range 2 { // the first breaks off before the other has caught up
			alone := s.journal.End()
			answer, hangUp, _ := s.hear(0)
			answer(alone - 50)
			if session == 0 {
				hangUp()
				s.lines(t, 100)
				continue
			}
			s.lines(t, 1)
			if !s.acknowledges(t, s.journal.End()) {
				t.Error("a line waits for all that the other lacks since the first session")
			}
			for round := 0; len(s.board.Conditions()) > 0; round++ {
				if round == 10 {
					t.Fatal("it has been caught up with ten times, and acknowledges alone")
				}
				behind := s.journal.End()
				s.lines(t, 10)
				if s.acknowledges(t, s.journal.End()) {
					alone = s.journal.End()
				}
				answer(behind)
				if behind < alone && len(s.board.Conditions()) == 0 {
					t.Errorf("no condition, and lines %d to %d are acknowledged with one disk", behind, alone-1)
				}
			}
			s.lines(t, 10)
			if s.acknowledges(t, s.journal.End()) {
				t.Error("a line is acknowledged that no other node has")
			}
			answer(s.journal.End())
			if !s.acknowledges(t, s.journal.End()) {
				t.Error("a line that another node has is not acknowledged")
			}
			hangUp()
		}
	})
}

// TestALineAfterASilenceBreaksNoSession: it is stored a moment before the wait
// for an answer ends, and the other node's answer comes behind that.
func TestALineAfterASilenceBreaksNoSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, end := newSession(t, time.Minute)
		defer end()
		answer, _, ended := s.hear(0)
		alive := func(when string) {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-ended:
				t.Fatalf("%s: the session ended: %v", when, err)
			default:
			}
		}
		for i := range 10 {
			<-time.After(replicaCommit - time.Millisecond)
			s.lines(t, 1)
			<-time.After(2 * time.Millisecond)
			alive(fmt.Sprintf("line %d", i))
			answer(s.journal.End())
			alive(fmt.Sprintf("the answer to line %d", i))
		}
		<-time.After(10 * replicaCommit)
		alive("nothing is owed")
		if got := s.cursor.Next(); got != s.journal.End() {
			t.Errorf("lines before %d are kept no more, want %d", got, s.journal.End())
		}
		s.lines(t, 1)
		<-time.After(replicaSilence + 2*replicaCommit)
		select {
		case <-ended:
		default:
			t.Error("an answer that does not come does not end the session")
		}
	})
}

// TestAPauseLetsNoLineOfTheOtherNodeGo: only a full disk does.
func TestAPauseLetsNoLineOfTheOtherNodeGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base, end := newSession(t, time.Minute)
		defer end()
		server := &Server{gate: newGate(), board: base.board, log: base.log, deps: Deps{Others: func() []Other { return nil }}}
		s, err := server.newShipper(base.journal)
		if err != nil {
			t.Fatal(err)
		}
		base.lines(t, 10)
		kept := func(what string, next uint64) {
			t.Helper()
			if err := s.run(t.Context(), func() {}); err == nil {
				t.Error("no other node, and no error")
			}
			if got := s.cursor.Next(); got != next {
				t.Errorf("%s: lines from %d on are kept, want from %d", what, got, next)
			}
		}
		kept("all is well", 0)
		server.gate.pause(true)
		kept("an admin said pause", 0)
		server.gate.pause(false)
		server.gate.disk(stopReadingAt)
		kept("the disk is nearly full", 10)
		server.gate.pause(true)
		base.lines(t, 10)
		kept("the disk is nearly full, and an admin said pause", 20)
	})
}

// TestLinesThatWentAtAStartAreTold, also where the other node is there before a
// line had to wait for it, and once. It fails if only the end of the condition
// tells of them.
func TestLinesThatWentAtAStartAreTold(t *testing.T) {
	var told bytes.Buffer
	log := slog.New(slog.NewTextHandler(&told, nil))
	r := &replicas{patience: time.Minute, log: log, end: func() uint64 { return 20 }, changed: make(chan struct{})}
	r.lacks(7)
	r.has(10, true)
	r.has(20, false)
	if got := told.String(); strings.Count(got, "without=7") != 1 || !strings.Contains(got, "level=WARN") {
		t.Errorf("told of 7 lines: %q, want one warning", got)
	}
}

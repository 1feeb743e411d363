package logrelay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/sockopt"
	"holdfast/lab/stall"
	"holdfast/logrelay/journal"
)

// TestWhatNobodyReadsAtTheRelaysEndIsCounted: lines may not come, and the relay
// ends. It fails if they are thrown away without a word, or with a word for each
// connection.
func TestWhatNobodyReadsAtTheRelaysEndIsCounted(t *testing.T) {
	for input, via := range inputs {
		t.Run(input, func(t *testing.T) {
			s, _, _, dial := leavingBy(t, input)
			s.endWithin = time.Minute // counting stops when there is no more
			var log syncBuffer
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			stop := run(t, s)
			s.gate.pause(true)
			const count, senders = 200, 3
			for range senders {
				conn := dial()
				sends(t, conn, 0, count-1)
				if _, err := fmt.Fprint(conn, "<13>Nov 25 12:00:00 cn1 test: half a line"); err != nil {
					t.Fatal(err)
				}
				delivered(t, conn)
			}
			eventually(t, time.Minute, "the sessions begin", func() error {
				s.sessions.mu.Lock()
				defer s.sessions.mu.Unlock()
				if n := len(s.sessions.open[loopback]); n != senders {
					return fmt.Errorf("%d", n)
				}
				return nil
			})
			stop()
			if n := testutil.ToFloat64(s.metrics.lost[via]); n != senders*count {
				t.Errorf("%v lines are counted as lost, want %d", n, senders*count)
			}
			if text := log.String(); strings.Count(text, "are lost") != 1 || !strings.Contains(text, fmt.Sprint("lines=", senders*count, " or_more=false")) {
				t.Errorf("the log: %s", text)
			}
		})
	}
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(text)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// readOnce is a connection of which the first read that brings something calls was,
// and the next waits for the end.
type readOnce struct {
	unread
	was   func()
	reads int
}

func (c *readOnce) Read(b []byte) (int, error) {
	if c.reads++; c.reads > 1 {
		return c.unread.Read(b)
	}
	n, err := c.Conn.Read(b)
	c.was()
	return n, err
}

// TestABeginningThatWasReadIsFollowedByTheRest: the relay ends when 4 KiB were
// read, which end within a line; by TLS, the kernel has nothing more then, since the
// rest is in a record that was read. It fails if only the kernel is asked for what is
// left: 45 of 80 lines were stored, or 23, and none counted; and if the beginning of
// the line is stored and what follows is taken for another.
func TestABeginningThatWasReadIsFollowedByTheRest(t *testing.T) {
	for input, via := range inputs {
		for _, counted := range []bool{true, false} {
			for _, paused := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, counted %v, paused %v", input, counted, paused), func(t *testing.T) {
					s, dir, _, dial := leavingBy(t, input)
					s.patience, s.endWithin = time.Nanosecond, time.Minute
					read := make(chan struct{})
					s.tap = func(conn net.Conn) net.Conn {
						return &readOnce{unread: unread{Conn: conn, end: make(chan struct{})}, was: func() {
							s.gate.pause(paused)
							close(read)
						}}
					}
					stop := run(t, s)
					conn := dial()
					const count = 80
					var text bytes.Buffer
					for n := range count {
						line := fmt.Sprintf("<13>Nov 25 12:00:00 cn1 test: seq=%d. %s", n, strings.Repeat("x", 140))
						if counted {
							fmt.Fprint(&text, len(line), " ", line)
						} else {
							fmt.Fprintln(&text, line)
						}
					}
					if _, err := conn.Write(text.Bytes()); err != nil {
						t.Fatal(err)
					}
					delivered(t, conn)
					<-read
					stop()
					p := process{t: t, dir: dir}
					stored, lost := len(p.numbers("cn1")), int(testutil.ToFloat64(s.metrics.lost[via]))
					if stored+lost != count || lost > 0 != paused {
						t.Errorf("%d lines are stored and %d counted as lost, want %d", stored, lost, count)
					}
					if files, _ := filepath.Glob(filepath.Join(dir, "hosts", "*")); len(files) != 1 { // the pattern is right
						t.Errorf("of one host there are %q", files)
					}
				})
			}
		}
	}
}

// TestTheRelaysEndSaysThatARecordIsCut: by TLS nobody knows how many lines are in what
// has come of it. It fails where the log has a number then, and no word that there may
// be more, also where all other lines are stored.
func TestTheRelaysEndSaysThatARecordIsCut(t *testing.T) {
	for _, paused := range []bool{true, false} {
		t.Run(fmt.Sprintf("paused %v", paused), func(t *testing.T) {
			s, dir, _, dial := leavingBy(t, "tls")
			var log syncBuffer
			s.log = slog.New(slog.NewTextHandler(&log, nil))
			stop := run(t, s)
			s.gate.pause(paused)
			const count = 5
			conn := dial()
			sends(t, conn, 0, count)
			header := []byte{23, 3, 3, 0x10, 0} // 4 KiB of data (RFC 8446 §5.1)
			if _, err := conn.(*tls.Conn).NetConn().Write(append(header, "of which this has come"...)); err != nil {
				t.Fatal(err)
			}
			eventually(t, time.Minute, "the session begins", func() error {
				if !s.sessions.some() {
					return errors.New("there is none")
				}
				return nil
			})
			stop()
			p := process{t: t, dir: dir}
			stored, lost := len(p.numbers("cn1")), int(testutil.ToFloat64(s.metrics.lost[viaTLS]))
			if stored+lost != count || lost > 0 != paused {
				t.Errorf("%d lines are stored and %d counted as lost, want %d", stored, lost, count)
			}
			if text := log.String(); !strings.Contains(text, fmt.Sprint("lines=", lost, " or_more=true")) {
				t.Errorf("the log: %s", text)
			}
		})
	}
}

// flooding is a connection that brings a line at each read, whatever its deadline.
type flooding struct{ net.Conn }

func (flooding) Read(b []byte) (int, error) {
	return copy(b, "<13>Nov 25 12:00:00 cn1 test: more\n"), nil
}

// TestTheRelaysEndDoesNotCountForEver what it has not taken: it fails if that is read
// for as long as there is more, and if the log then says that this was all.
func TestTheRelaysEndDoesNotCountForEver(t *testing.T) {
	s, _, _, connect := leavingBy(t, "tcp")
	var log syncBuffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	s.endWithin = 200 * time.Millisecond
	s.tap = func(conn net.Conn) net.Conn { return flooding{conn} }
	ctx, end := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	<-ready
	s.gate.pause(true)
	connect()
	eventually(t, time.Minute, "the session begins", func() error {
		if !s.sessions.some() {
			return errors.New("there is none")
		}
		return nil
	})
	end()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it still counts")
	}
	if text := log.String(); !strings.Contains(text, "are lost") || !strings.Contains(text, "or_more=true") {
		t.Errorf("the log: %s", text)
	}
}

// slowDisk takes a while for each sync, so that there is always a line that waits.
type slowDisk struct{ journal.File }

func (d slowDisk) Datasync() error {
	<-time.After(20 * time.Millisecond)
	return d.File.Datasync()
}

// TestTheRelaysEndLosesNothingOfASteadySender that is never quiet for long: all that
// its kernel was told is here is stored, and what it sends then is answered with a
// reset, so one write at most succeeds for nothing. It fails if the relay reads on
// until its last moment, since by TLS it looks for more than there is: the end then
// takes all of its time, and what was read last is not on the disk by then.
func TestTheRelaysEndLosesNothingOfASteadySender(t *testing.T) {
	for input, via := range inputs {
		t.Run(input, func(t *testing.T) {
			s, dir, _, dial := leavingBy(t, input)
			s.quiet, s.patience = 2*time.Second, 200*time.Millisecond
			s.endWithin = 2 * time.Minute
			s.wrap = func(f journal.File) journal.File { return slowDisk{f} }
			stop := run(t, s)
			conn := dial()
			sent, first := make(chan int, 1), make(chan struct{})
			go func() {
				for n := 0; ; n++ {
					if _, err := fmt.Fprintf(conn, "<13>Nov 25 12:00:00 cn1 test: seq=%d.\n", n); err != nil {
						sent <- n
						return
					}
					if n == 0 {
						close(first)
					}
					<-time.After(10 * time.Millisecond)
					for range 100 { // it has come, or a reset has, which the next write meets
						if unacked, err := sockopt.Unacked(below(conn)); err != nil || unacked == 0 {
							break
						}
						<-time.After(time.Millisecond)
					}
				}
			}()
			<-first
			eventually(t, time.Minute, "the session begins", func() error {
				if !s.sessions.some() {
					return errors.New("there is none")
				}
				return nil
			})
			began := time.Now()
			stop()
			if took := time.Since(began); took > s.endWithin/4 {
				t.Errorf("the end took %v", took)
			}
			count, p := <-sent, process{t: t, dir: dir}
			if stored, lost := len(p.numbers("cn1")), testutil.ToFloat64(s.metrics.lost[via]); stored < count-1 || lost > 0 {
				t.Errorf("%d lines were sent, %d are stored and %v counted as lost", count, stored, lost)
			}
		})
	}
}

// stuckDisk writes nothing to the disk until it is told.
type stuckDisk struct {
	journal.File
	stuck  *atomic.Bool
	resume chan struct{}
}

func (d stuckDisk) Datasync() error {
	if d.stuck.Load() {
		<-d.resume
	}
	return d.File.Datasync()
}

// TestTheRelaysEndDoesNotWaitForASlowDisk longer than for streams: all of its tasks
// have ten seconds. It fails if each write, a sender that goes on, or a client by RELP
// that waits for its answer, has a time of its own; if what the
// journal has and the disk has not is counted as lost, since it is stored when the disk
// goes on; if the log's word of what streams brought waits for all else; and if it has
// none of what UDP brought.
func TestTheRelaysEndDoesNotWaitForASlowDisk(t *testing.T) {
	s, dir, _, connect := leavingBy(t, "tcp")
	s.patience, s.endWithin = time.Hour, 300*time.Millisecond
	machine := stall.Test(t, "")
	var log syncBuffer
	s.log = slog.New(slog.NewTextHandler(&log, nil))
	disk := stuckDisk{stuck: &atomic.Bool{}, resume: make(chan struct{})}
	s.wrap = func(f journal.File) journal.File {
		disk := disk
		disk.File = f
		return disk
	}
	ctx, end := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	<-ready
	conn, busy := connect(), connect()
	client, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.conn.Close()
	udp, err := net.Dial("udp", s.Addrs("udp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	disk.stuck.Store(true)
	if _, err := client.conn.Write(client.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn1 by: RELP"))); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(udp, "<13>Nov 25 12:00:00 cn1 by: UDP"); err != nil {
		t.Fatal(err)
	}
	for n, to := range []net.Conn{conn, conn, conn, busy} {
		before := s.kept.Load()
		sends(t, to, n, n+1)
		eventually(t, time.Minute, "the line waits for the disk", func() error {
			if s.kept.Load() == before {
				return errors.New("it does not")
			}
			return nil
		})
	}
	began := time.Now()
	end()
	over := make(chan struct{})
	var sender sync.WaitGroup
	var sent []time.Time // its further lines
	sender.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(s.quiet / 20):
				at := time.Now()
				if _, err := fmt.Fprintf(busy, "<13>Nov 25 12:00:00 cn1 test: further=%d.\n", len(sent)); err == nil { // until it is closed
					sent = append(sent, at)
				}
			}
		}
	})
	eventually(t, time.Minute, "the sessions end", func() error {
		if s.sessions.some() {
			return errors.New("there are some")
		}
		return nil
	})
	eventually(t, time.Minute, "the log says so", func() error {
		if !strings.Contains(log.String(), "not yet on the disk") {
			return errors.New(log.String())
		}
		return nil
	})
	machine.Judge(t, "the log's word of it, which does not wait for the datagram,", lingerFor-s.endWithin, began, time.Now())
	close(over)
	sender.Wait()
	eventually(t, time.Minute, "nobody serves UDP any more", func() error {
		other, err := net.ListenPacket("udp", udp.RemoteAddr().String()) // in use until then
		if err != nil {
			return err
		}
		return other.Close()
	})
	close(disk.resume)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	p := process{t: t, dir: dir}
	got, lost := p.numbers("cn1"), int(testutil.ToFloat64(s.metrics.lost[viaTCP]))
	if slices.Sort(got); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("the lines %v are stored, want 0 to 3", got)
	}
	// Of the further ones, those are lost that came when the time for reading was over,
	// but for one that was on its way then.
	b, err := os.ReadFile(filepath.Join(dir, "hosts", "cn1"+fileSuffix))
	if err != nil {
		t.Fatal(err)
	}
	const onItsWay = 50 * time.Millisecond
	unread := began.Add(s.endWithin/2 - onItsWay - machine.Within(began, began.Add(s.endWithin)))
	late := 0
	for n, at := range sent {
		switch stored := bytes.Count(b, fmt.Appendf(nil, "further=%d.", n)); {
		case stored > 1:
			t.Errorf("the further line %d is stored %d times", n, stored)
		case stored == 0 && at.After(unread):
			late++
		case stored == 0:
			t.Errorf("the further line %d was sent %v after the end began, and is not stored", n, at.Sub(began))
		}
	}
	if lost > late {
		t.Errorf("of %d further lines %d came too late, and %d are counted as lost: some are stored as well, or one of the first is", len(sent), late, lost)
	}
	left, stored := 0, bytes.Count(b, []byte("\n"))-bytes.Count(b, []byte("by: RELP"))
	for _, m := range regexp.MustCompile(`not yet on the disk.* lines=(\d+)`).FindAllStringSubmatch(log.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		left += n
	}
	if left != stored || !bytes.Contains(b, []byte("by: UDP")) {
		t.Errorf("the log says of %d lines that they were not on the disk yet, and %d were stored then, of UDP and streams: %s", left, stored, b)
	}
}

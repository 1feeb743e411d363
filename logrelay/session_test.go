package logrelay

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/logrelay/journal"
)

// TestALineOfAnotherSessionIsNoDouble: two clients behind one address send the
// same line, the second while the first is still there. Both events are stored,
// and the second is counted as suspected. Once the first is gone, what comes
// again is dropped.
func TestALineOfAnotherSessionIsNoDouble(t *testing.T) {
	s, dir, _ := serve(t, nil)
	send := func() *sender {
		t.Helper()
		c, err := dial(s.Addrs("relp")[0].String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := c.conn.Write(c.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn1 test: link down"))); err != nil {
			t.Fatal(err)
		}
		if err := c.read(0); err != nil {
			t.Fatal(err)
		}
		return c
	}
	first, second := send(), send()
	stored := func(want int) {
		t.Helper()
		eventually(t, time.Minute, "the lines are in the file", func() error {
			b, err := os.ReadFile(filepath.Join(dir, "hosts", "cn1.log"))
			if n := strings.Count(string(b), "link down"); err == nil && n != want {
				return fmt.Errorf("%d lines, want %d", n, want)
			}
			return err
		})
	}
	stored(2)
	if again, doubted := testutil.ToFloat64(s.metrics.again), testutil.ToFloat64(s.metrics.doubted); again != 0 || doubted != 1 {
		t.Errorf("%v lines were dropped and %v suspected, want 0 and 1", again, doubted)
	}
	_, _ = first.conn.Close(), second.conn.Close()
	eventually(t, time.Minute, "both sessions are over", func() error {
		s.visits.mu.Lock()
		defer s.visits.mu.Unlock()
		if len(s.visits.here) > 0 {
			return fmt.Errorf("%d addresses have one", len(s.visits.here))
		}
		return nil
	})
	third := send()
	_ = third.conn.Close()
	if again := testutil.ToFloat64(s.metrics.again); again != 1 {
		t.Errorf("%v lines were dropped after both were gone, want 1", again)
	}
	stored(2)
}

// TestWhatIsKnownOfASenderGrowsOld: sessions that begin and end without a line
// make it no newer; and an open session counts as long as it is heard from.
func TestWhatIsKnownOfASenderGrowsOld(t *testing.T) {
	r, source := newRecent(), netip.MustParseAddr("10.1.0.31")
	minute := int64(time.Minute)
	r.add(journal.Record{Time: minute, Source: source, Input: viaRELP, Data: []byte("a")})
	r.put(source, 15*minute) // an open
	if r.resent(source, 16*minute) == nil {
		t.Error("what is 15 minutes old is compared")
	}
	if r.resent(source, 16*minute+1) != nil {
		t.Error("what is older than 15 minutes is compared: an open made it newer")
	}
	r.put(netip.MustParseAddr("10.1.0.32"), 1)
	if len(r.senders) != 1 {
		t.Errorf("%d senders are known, of one that sent a line", len(r.senders))
	}
	var v visits
	first := v.enter(source, 0)
	second := v.enter(source, 0)
	at := int64(aliveFor)
	if v.alone(source, second, at-1) || !v.alone(source, second, at) {
		t.Errorf("a session that was not heard from for %v counts, or one that was does not", aliveFor)
	}
	first.heard.Store(at)
	if v.alone(source, second, at) {
		t.Error("a session that is heard from does not count")
	}
	v.leave(source, first)
	if !v.alone(source, second, at) {
		t.Error("a session that is over counts")
	}
	v.leave(source, second)
	if len(v.here) != 0 {
		t.Error("nothing is forgotten")
	}
}

// TestASessionOfWhichNothingIsHeardDoesNotCountForEver, in virtual time: its cable
// was cut in the midst of a long frame, and the relay's own timers go on. It fails
// if anything but bytes counts as heard.
func TestASessionOfWhichNothingIsHeardDoesNotCountForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer func() { x.end() }()
		c := x.connect()
		source := addrOf(c.server.RemoteAddr())
		frame := c.session.AppendLine(nil, bytes.Repeat([]byte("x"), 4*firstBuffer))
		c.send(frame[:2*firstBuffer])
		alone := func() bool { return x.s.visits.alone(source, nil, time.Now().UnixNano()) }
		if alone() {
			t.Fatal("a session that was just heard from does not count")
		}
		<-time.After(aliveFor + time.Second)
		synctest.Wait()
		if !alone() {
			t.Errorf("nothing was heard of it for %v, and it counts", aliveFor)
		}
		c.send(frame[2*firstBuffer:])
		if alone() {
			t.Error("it goes on, and does not count")
		}
	})
}

package logrelay

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// slowReader is one who asks and takes a while for each line. Its deadline is
// what a connection's is.
type slowReader struct {
	*httptest.ResponseRecorder
	each   time.Duration
	by     time.Time
	failed bool
	asked  int // how often the deadline was set
}

func (r *slowReader) SetWriteDeadline(at time.Time) error {
	r.by = at
	r.asked++
	return nil
}

func (r *slowReader) Write(b []byte) (int, error) {
	<-time.After(r.each)
	if time.Now().After(r.by) {
		r.failed = true
		return 0, os.ErrDeadlineExceeded
	}
	return r.ResponseRecorder.Write(b)
}

// TestALongAnswerDoesNotBreakOff, in virtual time: it takes more than five
// minutes, and no single line does.
func TestALongAnswerDoesNotBreakOff(t *testing.T) {
	b := newBacklogged(t, map[string]backlog{"siem": {}})
	b.table.Store(&table{})
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			each time.Duration
			done bool
		}{{queryWriteBy / 4, true}, {time.Second, true}, {queryWriteBy + time.Second, false}} {
			w := &slowReader{ResponseRecorder: httptest.NewRecorder(), each: test.each}
			b.Handler().ServeHTTP(http.ResponseWriter(w), httptest.NewRequestWithContext(t.Context(), "GET", QueryPath, nil))
			if done := strings.Contains(w.Body.String(), `"done":true`); done != test.done || w.failed == test.done {
				t.Errorf("%v for a line: whole %v, want %v; %d bytes", test.each, done, test.done, w.Body.Len())
			}
			if test.each == time.Second && w.asked > 2 {
				t.Errorf("the deadline was set %d times in ten seconds", w.asked)
			}
		}
	})
}

// TestAQuestionAboutLatelyReadsNoOldSegments: but those in which lines of
// another node may be, whose clock is ahead.
func TestAQuestionAboutLatelyReadsNoOldSegments(t *testing.T) {
	b := newBacklogged(t, map[string]backlog{"siem": {}})
	list, err := filepath.Glob(filepath.Join(b.dir, "*.journal"))
	if err != nil || len(list) != backlogLines {
		t.Fatal(list, err)
	}
	noon := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for i, path := range list {
		at := noon.Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	for since, want := range map[time.Time]uint64{
		noon: 0, noon.Add(5 * time.Hour): 5, noon.Add(5*time.Hour + aheadMost): 5, noon.Add(5*time.Hour + aheadMost + 1): 6,
	} {
		if got := (&filter{since: since.UnixNano()}).begin(b.j); got != want {
			t.Errorf("since %v: read from %d on, want %d", since, got, want)
		}
	}
	if got := (&filter{}).begin(b.j); got != 0 {
		t.Errorf("of all times: read from %d on", got)
	}
}

// TestWhoSaysNothingHasNoConnectionForEver: a client that opens a session keeps
// it, however long it is silent.
func TestWhoSaysNothingHasNoConnectionForEver(t *testing.T) {
	s, _, _ := prepare(t)
	s.openWithin = 10 * time.Second // in which the one that does say it gets there
	run(t, s)
	opened, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.conn.Close()
	silent := map[string]net.Conn{}
	for _, begin := range []string{"", "1 op"} {
		conn, err := net.Dial("tcp", s.Addrs("relp")[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(begin)); err != nil {
			t.Fatal(err)
		}
		silent[begin] = conn
	}
	for begin, conn := range silent {
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("%q and then nothing: %v, want the end of the connection", begin, err)
		}
	}
	_ = opened.conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := opened.conn.Write(opened.session.AppendLine(nil, []byte("<13>Nov 25 12:00:00 cn1 test: x"))); err != nil {
		t.Fatal(err)
	}
	if err := opened.read(0); err != nil || opened.acked != 1 {
		t.Errorf("a session that was silent for longer than others have to open: %d lines acknowledged, %v", opened.acked, err)
	}
	eventually(t, time.Minute, "they are counted", func() error {
		if n := testutil.ToFloat64(s.metrics.refused.WithLabelValues("relp")); n != 2 {
			return os.ErrNotExist
		}
		return nil
	})
}

// TestSendersKeepNoNodeOut: with as many connections of senders as there may
// be, another node's lines still come.
func TestSendersKeepNoNodeOut(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	all[0].connections = 1
	for _, n := range all {
		n.replicaPatience = time.Minute
	}
	all[0].start(t)
	idle, err := dial(netip.AddrPortFrom(all[0].addr, testRELP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.conn.Close()
	all[1].start(t)
	all[1].send(t, 0, 5)
	if n := testutil.ToFloat64(all[0].metrics.replicated); n != 5 {
		t.Errorf("%v of 5 lines are on the other node", n)
	}
	for _, n := range all {
		n.end()
	}
}

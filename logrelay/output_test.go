package logrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// TestATargetThatIsDownForADayGetsAllAndDelaysNoOther, in virtual time: two
// targets by RELP, one of which refuses connections for a day.
func TestATargetThatIsDownForADayGetsAllAndDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, err := journal.Open(journal.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		s := &Server{board: health.NewBoard(time.Now, nil, nil), log: slog.New(slog.DiscardHandler)}
		if s.metrics, err = newMetrics(prometheus.NewRegistry(), func() float64 { return 0 }); err != nil {
			t.Fatal(err)
		}
		var group sync.WaitGroup
		group.Go(func() { _ = j.Run(ctx) })
		began, tries := time.Now(), 0
		outputOf := func(name string, up func() bool) (output, *receiver) {
			r := &receiver{}
			cursor, err := j.Cursor("to-"+name, true)
			if err != nil {
				t.Fatal(err)
			}
			f := &forward{
				target: target{name: name, via: viaRELP, addresses: []string{name}}, pool: pool{size: 1, least: firstReturn},
				journal: j, cursor: cursor, names: newNames(&cluster.File{}, "fb1", nil, 10), log: s.log, board: s.board, metrics: s.metrics.output(name),
				dialer: func(context.Context, string, string) (net.Conn, error) {
					if !up() {
						return nil, errors.New("connection refused")
					}
					here, there := net.Pipe()
					group.Go(func() { r.serve(there) })
					return here, nil
				},
			}
			return output{name: name, state: newOutputState(cursor), run: f.run}, r
		}
		well, wellGot := outputOf("well", func() bool { return true })
		down, downGot := outputOf("down", func() bool { tries++; return time.Since(began) >= 24*time.Hour })
		group.Go(func() { s.runOutputs(ctx, []output{well, down}) })
		var want []string
		for minute := range 24 * 60 {
			want = append(want, fmt.Sprintf("seq=%d", minute))
			var b journal.Batch
			b.Add(journal.Record{Time: time.Now().UnixNano(), Data: []byte("<13>Nov 25 12:00:00 cn1 test: " + want[minute])})
			commit, err := j.Append(ctx, &b)
			if err == nil {
				err = commit.Wait(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Minute)
			synctest.Wait()
			if got := wellGot.lines(); len(got) != minute+1 {
				t.Fatalf("minute %d: the target that is well has %d lines", minute, len(got))
			}
		}
		if got := s.board.Conditions(); len(got) != 1 || got[0].Name != conditionOutput+"down" {
			t.Errorf("%v", got)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(want, downGot.lines()); diff != "" || len(s.board.Conditions()) != 0 {
			t.Errorf("the target that was down: %s %v", diff, s.board.Conditions())
		}
		if tries > 3000 {
			t.Errorf("it was tried %d times in a day", tries)
		}
		end()
		group.Wait()
	})
}

// receiver is a target by RELP over any connection.
type receiver struct {
	mu  sync.Mutex
	got []string // what follows "test: ", or all of a line without
}

func (r *receiver) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *receiver) serve(conn net.Conn) {
	defer conn.Close()
	var session relp.Server
	var in []byte
	room := make([]byte, 4096)
	for {
		n, err := conn.Read(room)
		in = append(in, room[:n]...)
		if err != nil {
			return
		}
		for {
			f, size, err := relp.Parse(in)
			if err != nil || size == 0 {
				break
			}
			verdict, err := session.Step(f)
			if err != nil {
				return
			}
			answer := relp.AppendReply(nil, f)
			if verdict == relp.Store {
				_, line, ok := strings.Cut(string(f.Data), "test: ")
				if !ok {
					line = string(f.Data)
				}
				r.mu.Lock()
				r.got = append(r.got, line)
				r.mu.Unlock()
				answer = relp.AppendOK(nil, f.Txnr)
			}
			if _, err := conn.Write(answer); err != nil {
				return
			}
			in = in[size:]
		}
	}
}

// flushed waits until all outputs have what is in the journal; a Flush gives a slow
// disk ten seconds.
func flushed(t *testing.T, s *Server) {
	t.Helper()
	eventually(t, time.Minute, "all outputs have all", func() error { return s.Flush(t.Context()) })
}

// TestAReplaySendsATargetItsLinesOnceMore: from a time on, by an admin's word.
func TestAReplaySendsATargetItsLinesOnceMore(t *testing.T) {
	last, lastDir, stopLast := serve(t, nil)
	first, _, _ := serve(t, func(s *settings) {
		s.replay = 1 << 20
		s.forward = []target{{name: "siem", via: viaRELP, addresses: []string{last.Addrs("relp")[0].String()}}}
	})
	if err := numberedLines(first, "cn1", 20); err != nil {
		t.Fatal(err)
	}
	middle := time.Now()
	if err := numberedLines(first, "cn2", 30); err != nil {
		t.Fatal(err)
	}
	flushed(t, first)
	if lines, err := first.Replay("siem", middle); err != nil || lines != 30 {
		t.Errorf("%d lines, %v", lines, err)
	}
	p := process{t: t, dir: lastDir}
	eventually(t, time.Minute, "they came twice", func() error {
		if n := len(p.numbers("cn2")); n < 60 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
	stopLast()
	if one, two := len(p.numbers("cn1")), len(p.numbers("cn2")); one != 20 || two != 60 {
		t.Errorf("%d lines of before, and %d of 30 twice", one, two)
	}
	if _, err := first.Replay("files", middle); err == nil || !strings.Contains(err.Error(), "siem") {
		t.Errorf("files: %v", err)
	}
	if _, err := first.Replay("siem", time.Now().Add(time.Hour)); err == nil {
		t.Error("lines of the future are sent once more")
	}
}

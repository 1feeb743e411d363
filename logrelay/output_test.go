package logrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// TestATargetThatIsDownForADayGetsAllAndDelaysNoOther, in virtual time.
func TestATargetThatIsDownForADayGetsAllAndDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, err := journal.Open(journal.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		go func() { _ = j.Run(ctx) }()
		began, tries := time.Now(), 0
		taken := map[string]*atomic.Int64{"well": {}, "down": {}}
		outputOf := func(name string, up func() bool) output {
			cursor, err := j.Cursor(name, false)
			if err != nil {
				t.Fatal(err)
			}
			return output{name: name, state: newOutputState(cursor), run: func(ctx context.Context, well func()) error {
				if !up() {
					return errors.New("connection refused")
				}
				well()
				reader := j.Reader(cursor.Next())
				defer reader.Close()
				for {
					block, err := reader.Next(ctx)
					if err != nil {
						return nil
					}
					taken[name].Add(int64(block.Count))
					if err := cursor.Commit(block.End()); err != nil {
						return err
					}
				}
			}}
		}
		s := &Server{board: health.NewBoard(time.Now, nil, nil), log: slog.New(slog.DiscardHandler)}
		var group sync.WaitGroup
		group.Go(func() {
			s.runOutputs(ctx, []output{
				outputOf("well", func() bool { return true }),
				outputOf("down", func() bool { tries++; return time.Since(began) >= 24*time.Hour }),
			})
		})
		for minute := range int64(24 * 60) {
			var b journal.Batch
			b.Add(journal.Record{Time: time.Now().UnixNano(), Data: []byte("line")})
			commit, err := j.Append(ctx, &b)
			if err == nil {
				err = commit.Wait(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Minute)
			synctest.Wait()
			if n := taken["well"].Load(); n != minute+1 {
				t.Fatalf("minute %d: the target that is well has %d lines", minute, n)
			}
		}
		if got := s.board.Conditions(); len(got) != 1 || got[0].Name != conditionOutput+"down" {
			t.Errorf("%v", got)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if n := taken["down"].Load(); n != 24*60 || len(s.board.Conditions()) != 0 {
			t.Errorf("the target that was down has %d lines; %v", n, s.board.Conditions())
		}
		if tries > 3000 {
			t.Errorf("it was tried %d times in a day", tries)
		}
		end()
		group.Wait()
	})
}

// TestAReplaySendsATargetItsLinesOnceMore: from a time on, by an admin's word.
func TestAReplaySendsATargetItsLinesOnceMore(t *testing.T) {
	last, lastDir, stopLast := serve(t, nil)
	first, _, _ := serve(t, func(s *settings) {
		s.replay = 1 << 20
		s.forward = []target{{name: "siem", via: viaRELP, address: last.Addrs("relp")[0].String()}}
	})
	if err := numberedLines(first, "cn1", 20); err != nil {
		t.Fatal(err)
	}
	middle := time.Now()
	if err := numberedLines(first, "cn2", 30); err != nil {
		t.Fatal(err)
	}
	if err := first.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lines, err := first.Replay("siem", middle); err != nil || lines != 30 {
		t.Errorf("%d lines, %v", lines, err)
	}
	p := process{t: t, dir: lastDir}
	eventually(t, 20*time.Second, "they came twice", func() error {
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

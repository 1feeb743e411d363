package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUrgentLinesHaveRoomOfTheirOwn, and no more than that: beyond what others may
// have wait, Reserve bytes of them do. It fails where they are counted as the others
// are, where they have no bound, and where the others have their room.
func TestUrgentLinesHaveRoomOfTheirOwn(t *testing.T) {
	const pending = 64 << 10
	j, err := Open(Config{Dir: t.TempDir(), Pending: pending}) // nothing is written: Run does not run
	if err != nil {
		t.Fatal(err)
	}
	fill := func(urgent bool) (bytes int) {
		b := Batch{Urgent: urgent}
		b.Add(Record{Data: []byte(strings.Repeat("x", 1000))})
		for {
			if _, ok := j.TryAppend(&b); !ok {
				return bytes
			}
			if bytes += b.Size(); bytes > 1<<30 {
				t.Fatalf("urgent %v: no bound", urgent)
			}
		}
	}
	first, reserve, more := fill(false), fill(true), fill(false)
	if first > pending || first < pending-2000 || reserve > Reserve+2000 || reserve < Reserve-2000 || more != 0 {
		t.Errorf("room for %d bytes, %d urgent ones and %d more; want %d, %d and none", first, reserve, more, pending, Reserve)
	}
}

// TestARemovalThatDoesNotEndStopsNoAppend, nor the word that a write does not end: a
// disk that stands still may keep an unlink for ever. It fails where the journal is
// locked over one: of segments that all outputs have passed, or of a cursor.
func TestARemovalThatDoesNotEndStopsNoAppend(t *testing.T) {
	for what, remove := range map[string]func(j *Journal, c *Cursor) error{
		"commit": func(j *Journal, c *Cursor) error { return c.Commit(j.End()) },
		"remove": func(_ *Journal, c *Cursor) error { return c.Remove() },
		"forget": func(j *Journal, _ *Cursor) error { return j.Forget("other") },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			j, _ := open(t, Config{Dir: dir, Segment: 100})
			c, err := j.Cursor("files", false)
			if err != nil {
				t.Fatal(err)
			}
			for n := range 10 {
				if err := put(t, j, strings.Repeat("x", 100)+fmt.Sprint(n)); err != nil {
					t.Fatal(err)
				}
			}
			if what != "commit" { // else the last cursor goes, and nothing is passed
				other, err := j.Cursor("other", true)
				if err := errors.Join(err, other.Commit(j.End())); err != nil {
					t.Fatal(err)
				}
			}
			began, resume := make(chan struct{}, 100), make(chan struct{})
			j.unlink = func(path string) error {
				began <- struct{}{}
				<-resume
				return os.Remove(path)
			}
			removed, appended := make(chan error, 1), make(chan error, 1)
			go func() { removed <- remove(j, c) }()
			<-began
			go func() {
				var b Batch
				b.Add(Record{Data: []byte("behind")})
				commit, ok := j.TryAppend(&b)
				if !ok {
					appended <- errors.New("there is no room")
					return
				}
				_ = j.Busy()
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				appended <- commit.Wait(ctx)
			}()
			select {
			case err := <-appended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(2 * time.Minute):
				t.Error("the append waits for the removal")
			}
			close(resume)
			if err := <-removed; err != nil {
				t.Error(err)
			}
			names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
			if err != nil || len(names) > 2 {
				t.Errorf("%d segments are left, want the newest (%v)", len(names), err)
			}
		})
	}
}

package logrelay

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/logrelay/journal"
)

// followed is two nodes, a and b, that are followed in virtual time.
type followed struct {
	t    *testing.T
	into map[string]net.Conn
	mu   sync.Mutex // of both below: the clock has no order of its own for the race detector
	got  []string
	told []string
	end  func()
}

func follow(t *testing.T) *followed {
	t.Helper()
	f := &followed{t: t, into: map[string]net.Conn{}}
	ctx, cancel := context.WithCancel(t.Context())
	var streams []Stream
	for _, name := range []string{"a", "b"} {
		here, there := net.Pipe()
		f.into[name] = here
		streams = append(streams, Stream{name, there})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = Follow(ctx, streams, func(node string, why error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.told = append(f.told, node+": "+why.Error())
		}, func(_ string, e *Entry) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.got = append(f.got, e.Line)
			return nil
		})
	}()
	f.end = func() {
		cancel()
		<-ended
		for _, conn := range f.into {
			_ = conn.Close()
		}
	}
	return f
}

// says has a node send what answer makes of words.
func (f *followed) says(node, words string) {
	f.t.Helper()
	if _, err := io.Copy(f.into[node], answer(words)); err != nil {
		f.t.Fatal(err)
	}
	synctest.Wait()
}

// are checks all lines up to now.
func (f *followed) are(when, want string) {
	f.t.Helper()
	synctest.Wait()
	if got := strings.Join(f.copied(&f.got), " "); got != want {
		f.t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// copied is got or told as it is now.
func (f *followed) copied(list *[]string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(*list)
}

func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// TestTailGoesOnWithoutANodeThatFallsSilent: it has lost its power and says
// nothing, not even that it is gone. It is named once, the others' lines wait
// for it no more, and when it is back they do again.
func TestTailGoesOnWithoutANodeThatFallsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t)
		defer f.end()
		f.says("b", "^4")
		f.says("a", "4 5 6")
		f.are("b is at 4", "4")
		after(followPatience - time.Millisecond)
		f.are("b may still have an older one than 5", "4")
		after(time.Millisecond)
		f.are("b has said nothing for two seconds", "4 5 6")
		f.says("a", "7 8 ^8")
		f.are("b is still silent", "4 5 6 7 8")
		if len(f.copied(&f.told)) != 1 || !strings.HasPrefix(f.copied(&f.told)[0], "b: ") {
			t.Errorf("told %q, want once that b is late", f.copied(&f.told))
		}
		f.says("b", "3 ^8")
		f.are("b is back with an old line", "4 5 6 7 8 3")
		f.says("a", "10")
		f.are("b is back and waited for", "4 5 6 7 8 3")
		f.says("b", "9 ^10")
		f.are("b has come as far", "4 5 6 7 8 3 9 10")
		if len(f.copied(&f.told)) != 1 {
			t.Errorf("told %q", f.copied(&f.told))
		}
		_ = f.into["b"].Close()
		synctest.Wait()
		if len(f.copied(&f.told)) != 2 || !strings.Contains(f.copied(&f.told)[1], "broke off") {
			t.Errorf("told %q, want that b broke off", f.copied(&f.told))
		}
	})
}

// TestTailGoesOnWithANodeWhoseClockIsBehind: it says all the time how far it
// is, and is never as far as the others.
func TestTailGoesOnWithANodeWhoseClockIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t)
		defer f.end()
		for second := range 10 {
			f.says("a", fmt.Sprintf("%d ^%d", 1000+second, 1000+second))
			f.says("b", fmt.Sprintf("^%d", 10+second))
			after(time.Second)
		}
		f.are("b is a quarter of an hour behind", "1000 1001 1002 1003 1004 1005 1006 1007 1008 1009")
		f.says("b", "20")
		f.are("b has a line", "1000 1001 1002 1003 1004 1005 1006 1007 1008 1009 20")
		if len(f.copied(&f.told)) != 1 || !strings.Contains(f.copied(&f.told)[0], "its clock is") {
			t.Errorf("told %q", f.copied(&f.told))
		}
	})
}

// TestANodeThatIsStillLookingIsWaitedFor: who follows from an hour ago waits
// for one that reads its journal and has found nothing yet.
func TestANodeThatIsStillLookingIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := follow(t)
		defer f.end()
		f.says("a", "5 6")
		for range 30 {
			after(time.Second)
			if _, err := io.WriteString(f.into["b"], "{}\n"); err != nil {
				t.Fatal(err)
			}
		}
		f.are("b is looking", "")
		f.says("b", "2 ^6")
		f.are("b has found one", "2 5 6")
		if len(f.copied(&f.told)) != 0 {
			t.Errorf("told %q", f.copied(&f.told))
		}
	})
}

// TestASearchSaysThatItIsLooking: in a journal in which nothing fits.
func TestASearchSaysThatItIsLooking(t *testing.T) {
	j := newJournal(t)
	running, end := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = j.Run(running)
	}()
	defer func() {
		end()
		<-ended
	}()
	for range 5 {
		var b journal.Batch
		b.Add(journal.Record{Time: 1, Data: []byte("<13>Nov 25 12:00:00 cn1 test: x")})
		commit, err := j.Append(t.Context(), &b)
		if err == nil {
			err = commit.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	now, ctx := time.Unix(1000, 0), t.Context()
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var frames []string
	q := &search{
		filter: &filter{names: testNames(), severity: -1, since: 1}, journal: j, follow: true,
		now:   func() time.Time { now = now.Add(reorderTell / 2); return now },
		flush: func() error { return nil },
		send: func(f Frame) error {
			switch {
			case f.Upto != nil:
				frames = append(frames, "upto")
				enough()
			case f == (Frame{}):
				frames = append(frames, "looking")
			default:
				frames = append(frames, "line")
			}
			return nil
		},
	}
	_ = q.run(ctx)
	if looked := slices.Index(frames, "upto"); looked < 2 || looked >= 5 {
		t.Errorf("%q: want word of it now and then, and not at each block", frames)
	}
}

package journal

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
)

// gate is a disk whose syncs wait for the test: each takes what is sent.
type gate struct {
	File
	syncs chan error
}

func (g gate) Datasync() error {
	if err := <-g.syncs; err != nil {
		return err
	}
	return g.File.Datasync()
}

// gated is a journal on such a disk, within a bubble of synctest. sync lets one
// sync end, which a line's own block and a new segment's header take.
func gated(t *testing.T, config Config) (j *Journal, sync func(err error), end func()) {
	t.Helper()
	syncs := make(chan error)
	config.Dir, config.Wrap = t.TempDir(), func(f File) File { return gate{f, syncs} }
	j, stop := open(t, config)
	return j, func(err error) {
			syncs <- err
			synctest.Wait()
		}, func() {
			close(syncs)
			stop()
		}
}

func texts(t *testing.T, b Block) (list []string) {
	t.Helper()
	if err := b.Each(func(_ uint64, r Record) bool {
		list = append(list, string(r.Data))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

func add(t *testing.T, j *Journal, after Commit, line string, then func()) (Commit, error) {
	t.Helper()
	var b Batch
	b.Add(Record{Time: 1, Data: []byte(line)})
	return j.AppendAfter(t.Context(), after, &b, then)
}

// TestABlockIsSeenOnItsWayToTheDisk, once, by who asks for it, and by nobody
// else before it is there; through new segments and a write that fails.
func TestABlockIsSeenOnItsWayToTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, sync, end := gated(t, Config{Segment: 150})
		defer end()
		early, late := j.Reader(0), j.Reader(0)
		defer early.Close()
		defer late.Close()
		var last uint64
		segments := 0
		for i := range 12 {
			want := fmt.Sprintf("line %d, which fills the segment soon", i)
			commit, err := add(t, j, Commit{}, want, nil)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			b, ok, err := early.TryEarly()
			if !ok && err == nil {
				sync(nil) // of a new segment's header
				b, err = early.NextEarly(t.Context())
				segments++
			}
			if err != nil || !slices.Equal(texts(t, b), []string{want}) {
				t.Fatalf("%q, %v; want %q", texts(t, b), err, want)
			}
			if b.First < last {
				t.Fatalf("it has number %d, and the one before %d", b.First, last-1)
			}
			last = b.End()
			if b, ok, err := early.TryEarly(); ok || err != nil {
				t.Fatalf("once more %q, %v", texts(t, b), err)
			}
			if b, ok, err := late.TryNext(); ok || err != nil {
				t.Fatalf("%q is read as durable, %v", texts(t, b), err)
			}
			failing := i%5 == 4
			if failing {
				sync(syscall.EIO)
			} else {
				sync(nil)
			}
			if err := commit.Wait(t.Context()); (err != nil) != failing {
				t.Fatal(err)
			}
			if b, ok, err := early.TryEarly(); ok || err != nil {
				t.Fatalf("durable, and once more %q, %v", texts(t, b), err)
			}
			if b, ok, err := late.TryNext(); ok == failing || err != nil || ok && !slices.Equal(texts(t, b), []string{want}) {
				t.Fatalf("%v %q, %v; want %q", ok, texts(t, b), err, want)
			}
		}
		if segments < 4 {
			t.Errorf("%d segments", segments)
		}
	})
}

// TestWhatFollowsLinesThatFailedIsNotStored: neither what waited behind them nor
// what is appended behind them before anybody heard. Others' next lines are.
func TestWhatFollowsLinesThatFailedIsNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, sync, end := gated(t, Config{})
		defer end()
		var told []string
		tells := func(what string) func() { return func() { told = append(told, what) } }
		first, err := add(t, j, Commit{}, "first", tells("first"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is on its way
		sync(nil)       // of the header
		second, err := add(t, j, first, "second", tells("second"))
		if err != nil {
			t.Fatal(err)
		}
		sync(syscall.EIO)
		for name, c := range map[string]Commit{"first": first, "second": second} {
			if err := c.Wait(t.Context()); err == nil {
				t.Errorf("%s is acknowledged", name)
			}
		}
		if _, err := add(t, j, second, "third", tells("third")); err == nil {
			t.Error("what follows lines that failed is taken")
		}
		fourth, err := add(t, j, Commit{}, "fourth", tells("fourth"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		sync(nil) // of the header
		other, err := add(t, j, Commit{}, "other", tells("other"))
		if err != nil {
			t.Fatal(err)
		}
		sync(syscall.EIO) // of the fourth
		sync(nil)
		sync(nil)
		if err := fourth.Wait(t.Context()); err == nil {
			t.Error("fourth is acknowledged")
		}
		if err := other.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if got := all(t, j, 0); !slices.Equal(got, []string{"other"}) || !slices.Equal(told, []string{"other"}) {
			t.Errorf("stored %q, told of %q", got, told)
		}
	})
}

// TestWhoAppendedIsToldOfLinesThatAreBeforeTheEnd, in order, and before a Wait
// returns. It fails if those are told first whose lines End does not have yet:
// who then judges by it takes lines for stored that nobody waits for.
func TestWhoAppendedIsToldOfLinesThatAreBeforeTheEnd(t *testing.T) {
	j, _ := open(t, Config{Dir: t.TempDir()})
	var mu sync.Mutex
	told := 0
	var commits []Commit
	for i := range 200 {
		c, err := add(t, j, Commit{}, "line", func() {
			mu.Lock()
			defer mu.Unlock()
			if told != i {
				t.Errorf("line %d is told of behind %d", i, told)
			}
			if j.End() <= uint64(i) {
				t.Errorf("line %d is told of, and the journal ends at %d", i, j.End())
			}
			told++
		})
		if err != nil {
			t.Fatal(err)
		}
		commits = append(commits, c)
	}
	for i, c := range commits {
		err := c.Wait(t.Context())
		mu.Lock()
		if err != nil || told <= i {
			t.Errorf("line %d: %v, told of %d", i, err, told)
		}
		mu.Unlock()
	}
}

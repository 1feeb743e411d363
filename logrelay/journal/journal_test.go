package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// open opens a journal that is closed at the end of the test, or by stop.
func open(t *testing.T, config Config) (j *Journal, stop func()) {
	t.Helper()
	j, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = j.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	t.Cleanup(stop)
	return j, stop
}

// put appends lines of the node's own and waits for the disk.
func put(t *testing.T, j *Journal, lines ...string) error {
	t.Helper()
	var b Batch
	for _, line := range lines {
		b.Add(Record{Time: 1, Data: []byte(line)})
	}
	commit, err := j.Append(t.Context(), &b)
	if err != nil {
		return err
	}
	err = commit.Wait(t.Context())
	if ended, said := commit.Done(); !ended || (said == nil) != (err == nil) {
		t.Errorf("it has ended with %v, and Done says %v, %v", err, ended, said)
	}
	return err
}

// all reads what is durable from a record on.
func all(t *testing.T, j *Journal, from uint64) (lines []string) {
	t.Helper()
	r := j.Reader(from)
	defer r.Close()
	for {
		b, ok, err := r.TryNext()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return lines
		}
		if err := b.Each(func(number uint64, rec Record) bool {
			if number >= from {
				lines = append(lines, string(rec.Data))
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecordKeepsWhatItWasGiven(t *testing.T) {
	for _, r := range []Record{
		{Time: -1, Data: []byte("x")},
		{Time: 1 << 60, Source: netip.MustParseAddr("192.0.2.1"), Input: 3, Data: []byte{}},
		{Time: 5, Source: netip.MustParseAddr("2001:db8::1"), Input: 255, Data: bytes.Repeat([]byte{0, 10, 255}, 1000)},
	} {
		got, rest, err := nextRecord(append(appendRecord(nil, r), "more"...))
		if err != nil || string(rest) != "more" {
			t.Fatalf("%+v: %v, rest %q", r, err, rest)
		}
		if diff := cmp.Diff(r, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
	}
}

func TestLinesAreThereInOrderAfterAReopen(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for run := range 3 {
		j, stop := open(t, Config{Dir: dir, Segment: 300})
		for i := range 10 {
			line := fmt.Sprintf("run %d line %d", run, i)
			if err := put(t, j, line, line+"b"); err != nil {
				t.Fatal(err)
			}
			want = append(want, line, line+"b")
		}
		stop()
	}
	j, _ := open(t, Config{Dir: dir})
	if diff := cmp.Diff(want, all(t, j, 0)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want[31:], all(t, j, 31)); diff != "" {
		t.Errorf("from 31: %s", diff)
	}
	if j.End() != 60 || j.Damaged() != 0 {
		t.Errorf("end %d, damaged %d", j.End(), j.Damaged())
	}
}

// sample is a segment in memory: its bytes, and behind how many bytes each
// block is whole.
func sample(blocks int) (seg segment, data []byte, ends []int) {
	seg = segment{first: 7, salt: rand.Uint64()}
	data = seg.header()
	number := seg.first
	for i := range blocks {
		buf := make([]byte, blockHeader)
		count := 1 + i%3
		for k := range count {
			buf = appendRecord(buf, Record{Time: int64(i), Data: bytes.Repeat([]byte{byte('a' + k)}, 40*i)})
		}
		seg.seal(buf, number, count)
		number += uint64(count)
		data = append(data, buf...)
		ends = append(ends, len(data))
	}
	return seg, data, ends
}

func TestEveryTruncationRecoversTheWholeBlocksBeforeIt(t *testing.T) {
	seg, data, ends := sample(12)
	for cut := segmentHeader; cut <= len(data); cut++ {
		want := segmentHeader
		for _, end := range ends {
			if end <= cut {
				want = end
			}
		}
		e, err := seg.scan(bytes.NewReader(data[:cut]), int64(cut))
		if err != nil || int(e.end) != want || len(e.gaps) != 0 {
			t.Fatalf("cut at %d: %+v, %v, want end %d", cut, e, err, want)
		}
	}
}

func TestEveryTornLastWriteRecoversWhatWasAcknowledged(t *testing.T) {
	const sector = 64 // small, so that a block has many
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		seg, data, ends := sample(12)
		acked := ends[len(ends)-2]
		torn := bytes.Clone(data)
		whole := true
		for at := acked / sector * sector; at < len(torn); at += sector {
			if random.IntN(2) == 0 { // this sector did not reach the disk: zeros, or what was there
				part := torn[max(at, acked):min(at+sector, len(torn))]
				junk := bytes.Repeat([]byte{byte(random.IntN(2) * 0xB1)}, len(part))
				whole = whole && bytes.Equal(part, junk)
				copy(part, junk)
			}
		}
		e, err := seg.scan(bytes.NewReader(torn), int64(len(torn)))
		want := acked
		if whole {
			want = len(data)
		}
		if err != nil || int(e.end) != want || len(e.gaps) != 0 {
			t.Fatalf("%+v, %v, want end %d", e, err, want)
		}
	}
}

func TestADamagedBlockLosesItselfAlone(t *testing.T) {
	seg, data, ends := sample(12)
	for at := ends[4]; at < ends[5]; at++ {
		broken := bytes.Clone(data)
		broken[at] ^= 0x10
		e, err := seg.scan(bytes.NewReader(broken), int64(len(broken)))
		if err != nil || int(e.end) != len(data) || !slices.Equal(e.gaps, [][2]int64{{int64(ends[4]), int64(ends[5])}}) {
			t.Fatalf("byte %d: %+v, %v", at, e, err)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, fmt.Sprintf("%020d%s", seg.first, suffix))
	data[ends[5]-1] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	j, _ := open(t, Config{Dir: dir})
	if got := len(all(t, j, 0)); got != 24-3 {
		t.Errorf("read %d records, want all but the three of the damaged block", got)
	}
	if j.Damaged() != int64(ends[5]-ends[4]) {
		t.Errorf("damaged: %d", j.Damaged())
	}
}

func TestALineCanNotForgeABlock(t *testing.T) {
	// Whoever sends lines knows the format, not the segment's salt.
	seg, data, ends := sample(3)
	guess := segment{first: seg.first, salt: 0}
	forged := appendRecord(make([]byte, blockHeader), Record{Data: []byte("forged")})
	guess.seal(forged, seg.first+100, 1)
	block := appendRecord(make([]byte, blockHeader), Record{Data: forged})
	seg.seal(block, seg.first+6, 1)
	data = append(data[:ends[2]], block...)
	data[ends[2]+4] ^= 1 // torn, in a way that leaves the forged block whole
	e, err := seg.scan(bytes.NewReader(data), int64(len(data)))
	if err != nil || int(e.end) != ends[2] || e.next != seg.first+6 {
		t.Errorf("%+v, %v: the forged block was believed", e, err)
	}
}

// disk is a segment that can fail.
type disk struct {
	File
	state *diskState
}

type diskState struct {
	mu       sync.Mutex
	writeErr error
	syncErr  error
	slow     time.Duration
	syncs    int
	unsynced bool
}

func (d disk) WriteAt(b []byte, off int64) (int, error) {
	d.state.mu.Lock()
	err := d.state.writeErr
	d.state.unsynced = true
	d.state.mu.Unlock()
	if err != nil {
		n, _ := d.File.WriteAt(b[:len(b)/2], off)
		return n, err
	}
	return d.File.WriteAt(b, off)
}

func (d disk) Datasync() error {
	d.state.mu.Lock()
	err, slow := d.state.syncErr, d.state.slow
	d.state.syncs++
	d.state.mu.Unlock()
	if slow > 0 {
		<-time.After(slow) // what a slow disk takes
	}
	if err != nil {
		return err
	}
	err = d.File.Datasync()
	d.state.mu.Lock()
	d.state.unsynced = false
	d.state.mu.Unlock()
	return err
}

func (s *diskState) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func TestNothingIsAcknowledgedThatTheDiskRefused(t *testing.T) {
	for name, test := range map[string]func(*diskState){
		"disk full":       func(s *diskState) { s.writeErr = syscall.ENOSPC },
		"fdatasync fails": func(s *diskState) { s.syncErr = syscall.EIO },
	} {
		t.Run(name, func(t *testing.T) {
			dir, state := t.TempDir(), &diskState{}
			j, stop := open(t, Config{Dir: dir, Wrap: func(f File) File { return disk{f, state} }})
			if err := put(t, j, "one"); err != nil {
				t.Fatal(err)
			}
			state.set(func() { test(state) })
			for range 3 {
				if err := put(t, j, "refused"); err == nil {
					t.Fatal("acknowledged")
				}
			}
			if got := all(t, j, 0); len(got) != 1 {
				t.Errorf("outputs see what is not durable: %q", got)
			}
			state.set(func() { state.writeErr, state.syncErr = nil, nil })
			if err := put(t, j, "two"); err != nil {
				t.Fatalf("the disk is well again: %v", err)
			}
			stop()
			j, _ = open(t, Config{Dir: dir})
			if diff := cmp.Diff([]string{"one", "two"}, all(t, j, 0)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestALineIsAcknowledgedAfterItsSync(t *testing.T) {
	state := &diskState{}
	j, _ := open(t, Config{Dir: t.TempDir(), Wrap: func(f File) File { return disk{f, state} }})
	for range 20 {
		if err := put(t, j, "line"); err != nil {
			t.Fatal(err)
		}
		state.set(func() {
			if state.unsynced {
				t.Error("acknowledged with a write that is not synced")
			}
		})
	}
}

func TestOneSyncServesAllThatWait(t *testing.T) {
	state := &diskState{slow: 2 * time.Millisecond}
	j, _ := open(t, Config{Dir: t.TempDir(), Wrap: func(f File) File { return disk{f, state} }})
	var group sync.WaitGroup
	for range 64 {
		group.Go(func() {
			for range 20 {
				if err := put(t, j, "line"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if got := len(all(t, j, 0)); got != 64*20 {
		t.Errorf("%d lines", got)
	}
	state.set(func() {
		if state.syncs > 64*20/4 {
			t.Errorf("%d syncs for %d lines of 64 senders", state.syncs, 64*20)
		}
	})
}

func TestASlowDiskBoundsWhatWaits(t *testing.T) {
	state := &diskState{slow: time.Hour}
	j, err := Open(Config{Dir: t.TempDir(), Pending: 1000, Wrap: func(f File) File { return disk{f, state} }})
	if err != nil {
		t.Fatal(err)
	} // never run: nothing is taken
	var b Batch
	b.Add(Record{Data: make([]byte, 900)})
	if _, err := j.Append(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := j.Append(ctx, &b); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("more than Pending was taken: %v", err)
	}
}

func TestSegmentsGoWhenEveryCursorHasPassedThem(t *testing.T) {
	dir := t.TempDir()
	j, stop := open(t, Config{Dir: dir, Segment: 200})
	fast, err := j.Cursor("fast", false)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := j.Cursor("slow", false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := put(t, j, fmt.Sprint("line ", i, strings.Repeat("x", 100))); err != nil {
			t.Fatal(err)
		}
	}
	if err := fast.Commit(50); err != nil {
		t.Fatal(err)
	}
	if got := len(all(t, j, 0)); got != 50 {
		t.Fatalf("%d lines are left while one cursor stands at 0", got)
	}
	if err := slow.Commit(20); err != nil {
		t.Fatal(err)
	}
	if got := all(t, j, 20); len(got) != 30 || !strings.HasPrefix(got[0], "line 20") {
		t.Errorf("from the cursor: %d lines", len(got))
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*"+suffix)); len(files) > 17 {
		t.Errorf("%d segments are left for 30 of 50 lines", len(files))
	}
	stop()
	j, _ = open(t, Config{Dir: dir, Segment: 200})
	slow, err = j.Cursor("slow", false)
	if err != nil || slow.Next() != 20 {
		t.Fatalf("the cursor after a reopen: %d, %v", slow.Next(), err)
	}
	if err := j.Forget("fast"); err != nil {
		t.Fatal(err)
	}
	if got := len(all(t, j, 0)); got > 2 {
		t.Errorf("%d lines are left after the slow output was configured away", got)
	}
}

func TestAnOutputIsNotPassedByAJournalThatForgot(t *testing.T) {
	dir := t.TempDir()
	j, stop := open(t, Config{Dir: dir})
	c, err := j.Cursor("files", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(put(t, j, "a", "b", "c"), c.Commit(3)); err != nil {
		t.Fatal(err)
	}
	stop()
	names, _ := filepath.Glob(filepath.Join(dir, "*"+suffix))
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	j, _ = open(t, Config{Dir: dir})
	if err := put(t, j, "new"); err != nil {
		t.Fatal(err)
	}
	if got := all(t, j, 3); len(got) != 1 {
		t.Errorf("the output, which has 3 records, is given %q", got)
	}
}

func TestAReaderWaitsForTheNextLine(t *testing.T) {
	j, _ := open(t, Config{Dir: t.TempDir(), Segment: 100})
	r := j.Reader(0)
	defer r.Close()
	for i := range 20 {
		got := make(chan string, 1)
		go func() {
			b, err := r.Next(t.Context())
			if err != nil {
				got <- err.Error()
				return
			}
			_ = b.Each(func(_ uint64, rec Record) bool {
				got <- string(rec.Data)
				return false
			})
		}()
		want := fmt.Sprint("line ", i)
		if err := put(t, j, want); err != nil {
			t.Fatal(err)
		}
		if line := <-got; line != want {
			t.Fatalf("%q, want %q", line, want)
		}
	}
}

// FuzzScan has recovery look at segments that hold anything.
func FuzzScan(f *testing.F) {
	_, data, ends := sample(5)
	f.Add(data)
	f.Add(data[:ends[2]-3])
	f.Add([]byte(segmentMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		seg, err := parseSegment(data)
		if err != nil {
			return
		}
		e, err := seg.scan(bytes.NewReader(data), int64(len(data)))
		if err != nil || e.end > int64(len(data)) || e.next < seg.first {
			t.Fatalf("%+v, %v", e, err)
		}
		_, _ = parseCursor(data)
		for rest := data[segmentHeader:]; len(rest) > 0; {
			if _, rest, err = nextRecord(rest); err != nil {
				return
			}
		}
	})
}

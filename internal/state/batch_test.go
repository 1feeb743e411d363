package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// spoiler writes, and is then refused.
func (g generator) spoiler() Command {
	e := Entry{Key: g.key(), Value: []byte(pick(g, "x", "y"))}
	return Transact{[]KV{{Set, e}, {DeleteTree, Entry{Key: "a/"}}, {Verb: Get, Entry: Entry{Key: "nowhere"}}}}
}

// batch makes commands that follow entry index, with gaps as configurations and
// barriers leave them in the log.
func (g generator) batch(index uint64) []Batched {
	batch := make([]Batched, 1+g.IntN(pick(g, 3, 40)))
	for i := range batch {
		index += 1 + g.Uint64N(2)
		batch[i] = Batched{Index: index, Cmd: g.command(index)}
		switch g.IntN(24) {
		case 0:
			batch[i].Cmd = g.spoiler()
		case 1, 2, 3: // about what commands of this batch wrote
			at := batch[g.IntN(i+1)].Index
			verb := pick(g, CAS, DeleteCAS)
			batch[i].Cmd = KV{verb, Entry{Key: g.key(), Value: []byte("z"), ModifyIndex: at}}
		}
	}
	return batch
}

// A replica that gets the log in batches holds and answers what one does that
// gets it entry by entry, and wakes whoever waits for what changed. It would fail
// if a refused command left something, if it took the others with it, if indexes
// were written once a batch, or if tombstones were counted for the last command
// alone.
func TestBatchesGiveWhatSingleCommandsGive(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		seen := batchesAgree(t, seed)
		if seen.refused < 20 || seen.spoiled == 0 {
			t.Errorf("seed %d: only %d commands were refused, %d of them when they had written: the test shows little", seed, seen.refused, seen.spoiled)
		}
		if seen.needless > seen.watches/10 {
			t.Errorf("seed %d: %d of %d watches fired without a change", seed, seen.needless, seen.watches)
		}
	}
}

func FuzzBatches(f *testing.F) {
	f.Fuzz(func(t *testing.T, seed uint64) { batchesAgree(t, seed) })
}

// batchesSeen counts what a seed's batches showed: of few seeds it can be said
// beforehand, not of every one that a fuzzer thinks of.
type batchesSeen struct {
	refused  int // commands
	spoiled  int // of those, when they had written
	watches  int
	needless int // of those, fired without a change
}

func batchesAgree(t *testing.T, seed uint64) (seen batchesSeen) {
	g, single, batched := newGenerator(seed), New(), New()
	everything := Part{Kinds: []string{"k", "k/l"}}
	_, at := single.Whole()
	queries := universe(t)
	before := askAll(t, batched.Snapshot(), queries)
	var index uint64
	for range 25 {
		batch := g.batch(index)
		index = batch[len(batch)-1].Index
		what := fmt.Sprintf("seed %d, batch of %d up to entry %d", seed, len(batch), index)
		versions := [2]uint64{single.Snapshot().Version(), batched.Snapshot().Version()}
		changed := batched.Changed()
		var errs []error
		for _, b := range batch {
			err := single.Apply(b.Index, recode(t, b.Cmd))
			errs = append(errs, err)
			if err != nil {
				seen.refused++
				if _, is := b.Cmd.(Transact); is {
					seen.spoiled++
				}
			}
		}
		batched.ApplyBatch(batch)
		for i, b := range batch {
			if fmt.Sprint(b.Err) != fmt.Sprint(errs[i]) {
				t.Fatalf("%s: entry %d, %T: %v, alone %v", what, b.Index, b.Cmd, b.Err, errs[i])
			}
			for _, is := range []error{ErrConflict, ErrInvalid, ErrNotFound} {
				if errors.Is(b.Err, is) != errors.Is(errs[i], is) {
					t.Fatalf("%s: entry %d: %v is %v or not", what, b.Index, b.Err, is)
				}
			}
			alone, okA := single.Outcome(b.Index)
			found, okB := batched.Outcome(b.Index)
			if d := cmp.Diff(alone, found, cmpopts.EquateEmpty()); d != "" || okA != okB {
				t.Fatalf("%s: the outcome of entry %d differs (%v, %v): %s", what, b.Index, okA, okB, d)
			}
		}
		if !bytes.Equal(snapshotOf(t, single), snapshotOf(t, batched)) {
			t.Fatalf("%s: the snapshots differ", what)
		}
		var dead graves
		for _, r := range list[indexRow](batched.Snapshot().txn, tableIndex, "id", nil) {
			if r.Dead {
				dead[r.Aspect].count++
			}
		}
		if dead != batched.graves || dead != single.graves || dead != batched.Snapshot().graves {
			t.Fatalf("%s: tombstones %v, counted %v, alone %v", what, dead, batched.graves, single.graves)
		}
		sameCommitted(t, what, single, batched, &at, everything)
		alone, _ := single.Since(versions[0])
		keys, ok := batched.Since(versions[1])
		if d := cmp.Diff(keySet(alone), keySet(keys), cmpopts.EquateEmpty()); d != "" || !ok {
			t.Fatalf("%s: Since differs: %s", what, d)
		}
		if closed(changed) != (len(keys) > 0) {
			t.Fatalf("%s: %d keys changed, and Changed is closed: %v", what, len(keys), closed(changed))
		}
		after := askAll(t, batched.Snapshot(), queries)
		for q, now := range after {
			old := before[q]
			fired := (&watched{ws: old.ws}).fired()
			switch {
			case (now.index != old.index || !slices.Equal(now.rows, old.rows)) && !fired:
				t.Fatalf("%s: %s went from index %d to %d with a silent watch", what, q, old.index, now.index)
			case now.index < old.index:
				t.Fatalf("%s: the index of %s went back from %d to %d", what, q, old.index, now.index)
			case fired && now.index == old.index:
				seen.needless++
			}
		}
		seen.watches += len(after)
		before = after
	}
	for _, q := range queries {
		rowsA, indexA := ask(t, single.Snapshot(), nil, q)
		rowsB, indexB := ask(t, batched.Snapshot(), nil, q)
		if d := cmp.Diff(rowsA, rowsB); d != "" || indexA != indexB {
			t.Errorf("seed %d: %s at index %d, alone %d:\n%s", seed, q, indexB, indexA, d)
		}
	}
	return seen
}

// sameCommitted compares what both tell who follows a part, from at on.
func sameCommitted(t *testing.T, what string, a, b *Store, at *Position, p Part) {
	t.Helper()
	listA, nextA, okA := a.Committed(*at, p)
	listB, nextB, okB := b.Committed(*at, p)
	indexes := func(list []Committed) (of []uint64) {
		for _, c := range list {
			of = append(of, c.Index)
		}
		return of
	}
	if !okA || !okB || nextA != nextB || !slices.Equal(indexes(listA), indexes(listB)) {
		t.Fatalf("%s: committed %v up to %v, alone %v up to %v", what, indexes(listB), nextB, indexes(listA), nextA)
	}
	*at = nextA
}

func keySet(keys []Key) map[Key]bool {
	set := map[Key]bool{}
	for _, k := range keys {
		set[k] = true
	}
	return set
}

// Nobody sees one command of a batch without the other, nor under another index
// than the last one's; and who is woken finds the batch. It would fail if each
// command were published, or the view were replaced after the watches fired and
// outside the lock.
func TestReadersSeeWholeBatches(t *testing.T) {
	const batches = 2000
	s := New()
	s.ApplyBatch(pair(0))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		wg.Go(func() {
			for {
				ws := WatchSet{}
				snap := s.Snapshot()
				_, before := snap.Entry(ws, name)
				a, indexA := snap.Entry(nil, "a")
				b, indexB := snap.Entry(nil, "b")
				if !bytes.Equal(a.Value, b.Value) || indexA+1 != indexB || snap.Index() != indexB {
					t.Errorf("a is %s at %d, b is %s at %d, in a snapshot at %d", a.Value, indexA, b.Value, indexB, snap.Index())
					return
				}
				ws.Add(done)
				if ws.WatchCtx(context.Background()) != nil {
					return
				}
				select {
				case <-done:
					return
				default:
				}
				if _, after := s.Snapshot().Entry(nil, name); after == before {
					t.Errorf("who was woken found entry %d still", before)
					return
				}
			}
		})
	}
	for i := range uint64(batches) {
		s.ApplyBatch(pair(i + 1))
	}
	close(done)
	wg.Wait()
}

func pair(i uint64) []Batched {
	v := fmt.Sprint(i)
	return []Batched{{Index: 2*i + 2, Cmd: set("a", v)}, {Index: 2*i + 3, Cmd: set("b", v)}}
}

func TestBatchOutOfOrderPanicsAndChangesNothing(t *testing.T) {
	s := New()
	apply(t, s, 5, set("k", "v"))
	before := snapshotOf(t, s)
	for _, indexes := range [][]uint64{{5, 6}, {6, 6}, {7, 6}, {6, 7, 4}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("entries %v after 5 were applied", indexes)
				}
			}()
			s.ApplyBatch(puts(indexes...))
		}()
	}
	if !bytes.Equal(before, snapshotOf(t, s)) {
		t.Error("something of a batch out of order is in the state")
	}
	s.ApplyBatch(nil)
	s.ApplyBatch(puts(6, 9)) // and the locks are free again
	if got := s.Snapshot().Index(); got != 9 {
		t.Errorf("the state is at %d after entry 9", got)
	}
}

// puts sets a key of its own for each index.
func puts(indexes ...uint64) []Batched {
	var batch []Batched
	for _, index := range indexes {
		batch = append(batch, Batched{Index: index, Cmd: set(fmt.Sprintf("dir/%04d", index%4000), strings.Repeat("x", 200)+fmt.Sprint(index))})
	}
	return batch
}

func upTo(from, to uint64) (indexes []uint64) {
	for ; from <= to; from++ {
		indexes = append(indexes, from)
	}
	return indexes
}

// A batch is one transaction, also with a command among it that is refused before
// it writes; a large one is several, so that what go-memdb tracks stays small. A
// refused command that has written already splits it.
func TestBatchIsOneTransaction(t *testing.T) {
	conflict := Batched{Cmd: KV{CAS, Entry{Key: "dir/0001", ModifyIndex: 77}}}
	spoiler := Batched{Cmd: Transact{[]KV{set("x", "y"), {Verb: Get, Entry: Entry{Key: "nowhere"}}}}}
	with := func(n uint64, at int, b Batched) []Batched {
		batch := puts(upTo(1, n)...)
		b.Index = batch[at].Index
		batch[at] = b
		return batch
	}
	for name, c := range map[string]struct {
		batch []Batched
		want  uint64 // publications with a change
	}{
		"puts":            {puts(upTo(1, 128)...), 1},
		"one is refused":  {with(128, 60, conflict), 1},
		"one has written": {with(128, 60, spoiler), 2},
		"the first has":   {with(128, 0, spoiler), 1},
		"the last has":    {with(128, 127, spoiler), 1},
		"many":            {puts(upTo(1, 3000)...), 6}, // each the key and the waker of an absent one
	} {
		s := New()
		s.ApplyBatch(c.batch)
		if got := s.Snapshot().Version(); got != c.want {
			t.Errorf("%s: published %d times, want %d", name, got, c.want)
		}
		if got, want := s.Snapshot().Index(), c.batch[len(c.batch)-1].Index; got != want {
			t.Errorf("%s: the state is at %d, want %d", name, got, want)
		}
	}
}

// A batch of 32 puts allocates less than half of what they do alone: 30 % when it
// was measured. It would fail if each opened a transaction of its own, or read in
// it, which makes go-memdb copy nodes again (56 %).
func TestBatchAllocatesLess(t *testing.T) {
	measure := func(size uint64) float64 {
		s := New()
		s.ApplyBatch(puts(upTo(1, 4000)...))
		next := uint64(4001)
		return testing.AllocsPerRun(50, func() {
			batch := puts(upTo(next, next+31)...)
			next += 32
			for of := range slices.Chunk(batch, int(size)) {
				s.ApplyBatch(of)
			}
		})
	}
	alone, together := measure(1), measure(32)
	if t.Logf("%.0f and %.0f allocations", alone, together); together > 0.45*alone {
		t.Errorf("32 puts allocate %.0f times together, %.0f alone", together, alone)
	}
}

// Since gives what a walk over all of the journal gives, also when the ring has
// gone round.
func TestSinceIsWhatAWalkGives(t *testing.T) {
	g := newGenerator(1)
	var j journal
	for version := uint64(1); version <= 6000; version++ {
		var keys []Key
		for range 1 + g.IntN(3) {
			keys = append(keys, Key{TableKV, fmt.Sprint(g.IntN(3000))})
		}
		j.record(version, keys)
		if version == 3000 {
			j.reset(version)
		}
		if version%97 != 0 && version > 5 {
			continue
		}
		for _, from := range []uint64{0, 1, version / 2, j.floor - 1, j.floor, j.floor + 1, version - 1, version, version + 1, g.Uint64N(version)} {
			want, wantOK := walk(&j, from)
			got, ok := j.since(from)
			if d := cmp.Diff(want, got); d != "" || ok != wantOK {
				t.Fatalf("at version %d, since %d (%v, want %v): %s", version, from, ok, wantOK, d)
			}
		}
	}
}

func walk(j *journal, version uint64) ([]Key, bool) {
	if version < j.floor || version > j.version {
		return nil, false
	}
	var keys []Key
	seen := map[Key]bool{}
	for i := range j.ring {
		if c := j.ring[(j.next+i)%len(j.ring)]; c.version > version && !seen[c.key] {
			keys, seen[c.key] = append(keys, c.key), true
		}
	}
	return keys, true
}

// BenchmarkApplyBatch is the cost of one put among 12,800 keys, by how many are
// applied together.
func BenchmarkApplyBatch(b *testing.B) {
	for _, size := range []int{1, 8, 30, 128} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s, value := New(), bytes.Repeat([]byte("v"), 256)
			r := rand.New(rand.NewPCG(1, 2))
			put := func(index uint64, k int) Batched {
				return Batched{Index: index, Cmd: KV{Set, Entry{Key: fmt.Sprintf("bench/%02d/%03d", k%64, k/64), Value: value, Flags: index}}}
			}
			index := uint64(1)
			for ; index <= 12800; index++ {
				s.ApplyBatch([]Batched{put(index, int(index-1))})
			}
			batch := make([]Batched, 0, size)
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; done += len(batch) {
				batch = batch[:0]
				for range size {
					batch = append(batch, put(index, r.IntN(12800)))
					index++
				}
				s.ApplyBatch(batch)
			}
		})
	}
}

// newKeys gives batches of keys that were not there, of 64 directories, which hold
// some 200 each.
func newKeys() (s *Store, next func(size int) []Batched) {
	s = New()
	index, value := uint64(0), bytes.Repeat([]byte("v"), 256)
	next = func(size int) (batch []Batched) {
		for range size {
			index++
			batch = append(batch, Batched{Index: index, Cmd: KV{Set, Entry{Key: fmt.Sprintf("bench/%02d/%06d", index%64, index/64), Value: value}}})
		}
		return batch
	}
	for range 128 {
		s.ApplyBatch(next(100))
	}
	return s, next
}

// Each new key asks whether its directory had one. Asked of the transaction, that
// has the nodes copied anew that it wrote before: 89 allocations a key in a batch
// of 128, where there are 48.
func TestNewKeysOfABatchShareTheirNodes(t *testing.T) {
	s, next := newKeys()
	one := testing.AllocsPerRun(50, func() { s.ApplyBatch(next(1)) })
	many := testing.AllocsPerRun(50, func() { s.ApplyBatch(next(128)) }) / 128
	t.Logf("%.0f allocations a key, %.1f in a batch of 128", one, many)
	if many > one/2 {
		t.Errorf("%.1f allocations a key in a batch of 128, alone %.0f", many, one)
	}
}

// BenchmarkNewKeys is BenchmarkApplyBatch for keys that were not there.
func BenchmarkNewKeys(b *testing.B) {
	for _, size := range []int{1, 8, 30, 128} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s, next := newKeys()
			b.ReportAllocs()
			b.ResetTimer()
			for done := 0; done < b.N; done += size {
				s.ApplyBatch(next(size))
			}
		})
	}
}

// BenchmarkSince asks a full journal for the last change.
func BenchmarkSince(b *testing.B) {
	s := New()
	s.ApplyBatch(puts(upTo(1, 6000)...))
	apply(b, s, 7000, set("k", "v"))
	from := s.Snapshot().Version() - 1
	b.ReportAllocs()
	for b.Loop() {
		if keys, ok := s.Since(from); !ok || len(keys) != 1 {
			b.Fatalf("Since = %v, %v", keys, ok)
		}
	}
}

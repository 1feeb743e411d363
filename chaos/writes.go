package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
)

// Store is what the workload writes to: one or several nodes of a cluster.
type Store interface {
	// Put returns nil only when the write was acknowledged.
	Put(ctx context.Context, key, value string) error
	// List returns every key below prefix, read linearizably.
	List(ctx context.Context, prefix string) (map[string]string, error)
}

// Writes is a workload of unique keys below a prefix. No key is written
// twice, so each acknowledged one must be found again, with its value.
type Writes struct {
	Store   Store
	Prefix  string        // ends in "/"
	Writers int           // side by side
	Timeout time.Duration // of one write

	mu       sync.Mutex
	acked    map[string]string
	maybe    map[string]string // tried, not acknowledged: may or may not be there
	failures map[string]int    // reason → count
	longest  time.Duration     // between two acknowledgements
	last     time.Time
}

// Run writes until ctx ends.
func (w *Writes) Run(ctx context.Context) {
	w.mu.Lock()
	w.acked, w.maybe, w.failures = map[string]string{}, map[string]string{}, map[string]int{}
	w.last = time.Now()
	w.mu.Unlock()
	var wg sync.WaitGroup
	for i := range w.Writers {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				w.write(ctx, fmt.Sprintf("%s%02d/%08d", w.Prefix, i, n), fmt.Sprintf("writer %d, write %d", i, n))
			}
		})
	}
	wg.Wait()
}

func (w *Writes) write(ctx context.Context, key, value string) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.Timeout)
	defer cancel()
	err := w.Store.Put(bounded, key, value)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.maybe[key] = value
		w.failures[reason(err)]++
		return
	}
	w.acked[key] = value
	now := time.Now()
	w.longest = max(w.longest, now.Sub(w.last))
	w.last = now
}

// reason folds errors that differ in names and numbers only: the innermost
// error's first words.
func reason(err error) string {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	text := err.Error()
	return text[:min(len(text), 40)]
}

// Summary tells what the workload saw.
type Summary struct {
	Acked, Unknown int
	LongestGap     time.Duration // between two acknowledgements
	Failures       map[string]int
}

// Summary may be called while the workload runs.
func (w *Writes) Summary() Summary {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Summary{
		Acked: len(w.acked), Unknown: len(w.maybe),
		LongestGap: w.longest, Failures: maps.Clone(w.failures),
	}
}

// ErrUnread says that a store was not read: nothing is known of what it holds.
var ErrUnread = errors.New("chaos: the store was not read")

// Check compares what store holds with what was acknowledged. The error names
// acknowledged writes that are lost or changed, and keys nobody wrote; it is
// [ErrUnread] when the store did not tell, such as during an election.
func (w *Writes) Check(ctx context.Context, store Store) error {
	found, err := store.List(ctx, w.Prefix)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnread, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return compare(w.acked, w.maybe, found)
}

// compare is the checker: every acked key must be found with its value, and
// what is found beyond must at least have been tried.
func compare(acked, maybe, found map[string]string) error {
	const most = 10 // named one by one
	var wrong []error
	count := 0
	report := func(format string, args ...any) {
		if count++; count <= most {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	for key, value := range acked {
		switch got, ok := found[key]; {
		case !ok:
			report("lost: %s was acknowledged and is gone", key)
		case got != value:
			report("changed: %s holds %q, acknowledged was %q", key, got, value)
		}
	}
	for key, value := range found {
		if _, ok := acked[key]; ok {
			continue
		}
		if tried, ok := maybe[key]; !ok || tried != value {
			report("invented: %s holds %q, nobody wrote that", key, value)
		}
	}
	if count > most {
		wrong = append(wrong, fmt.Errorf("and %d more", count-most))
	}
	return errors.Join(wrong...)
}

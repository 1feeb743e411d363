package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/bench"
)

// valueSize is how long a value is, in bytes: about a service with its check.
const valueSize = 256

type writerKey struct{}

// asWriter says which connection a writer has.
func asWriter(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, writerKey{}, n)
}

// pick is the connection of the context's writer.
func (c clients) pick(ctx context.Context) *http.Client {
	n, _ := ctx.Value(writerKey{}).(int)
	return c[n/nodes%connections]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (b *benchmark) writes(ctx context.Context) error {
	return b.each(ctx, "writes", b.rounds, func(ctx context.Context, c contestant) error {
		if _, err := b.load(ctx, c, 16, time.Second, write(c)); err != nil { // connections, caches, files
			return err
		}
		return b.compare(ctx, c, "write", write(c))
	})
}

// reads are linearizable, each of a key of its reader's.
func (b *benchmark) reads(ctx context.Context) error {
	return b.each(ctx, "reads", b.rounds, func(ctx context.Context, c contestant) error {
		for w := range slices.Max(b.writers) {
			if err := write(c)(ctx, w, 0); err != nil {
				return err
			}
		}
		return b.compare(ctx, c, "read", func(ctx context.Context, w, i int) error {
			return c.get(ctx, (w+i)%nodes, fmt.Sprintf("bench/%d/0", w))
		})
	})
}

// write gives what writer w does the i-th time. Each takes the nodes in turn: it
// would matter much for few of them whether theirs leads.
func write(c contestant) func(ctx context.Context, w, i int) error {
	value := bytes.Repeat([]byte("v"), valueSize)
	return func(ctx context.Context, w, i int) error {
		return c.put(ctx, (w+i)%nodes, fmt.Sprintf("bench/%d/%d", w, i%1000), value)
	}
}

// compare measures what few and many do. That the leadership changes meanwhile is
// told: it explains the figures, and should never be.
func (b *benchmark) compare(ctx context.Context, c contestant, what string, do func(ctx context.Context, w, i int) error) error {
	for _, n := range b.writers {
		before, err := c.leader(ctx)
		if err != nil {
			return err
		}
		took, cost, err := b.costing(ctx, c, n, before, what, do)
		if err != nil {
			return err
		}
		if after, err := c.leader(ctx); err != nil || after != before {
			fmt.Fprintf(os.Stderr, "%s: the leadership went from %s to %s while %d of them did a %s (%v)\n", c.name(), nodeName(before), nodeName(after), n, what, err)
		}
		slices.Sort(took)
		by := fmt.Sprintf(", %d %sers", n, strings.TrimSuffix(what, "e"))
		b.found.Add(bench.Higher(what+"s"+by, "1/s"), c.name(), float64(len(took))/b.during.Seconds())
		b.found.Add(bench.Lower("a "+what+", p50"+by, "ms"), c.name(), ms(took[len(took)/2]))
		b.found.Add(bench.Lower("a "+what+", p99"+by, "ms"), c.name(), ms(took[len(took)*99/100]))
		b.found.Add(bench.Lower("processor time of three nodes for a "+what+by, "µs"), c.name(), float64(cost.Microseconds())/float64(len(took)))
	}
	return nil
}

// costing is load that also gives the processor time that the nodes took.
func (b *benchmark) costing(ctx context.Context, c contestant, n, leader int, what string, do func(ctx context.Context, w, i int) error) (took []time.Duration, cost time.Duration, err error) {
	measure := func() (err error) {
		begun, err := processor(c.programs())
		if err == nil {
			took, err = b.load(ctx, c, n, b.during, do)
		}
		ended, err2 := processor(c.programs())
		cost = ended - begun
		return errors.Join(err, err2)
	}
	if p, ok := c.(profiler); ok && b.profiles != "" {
		err = profiled(ctx, b.profiles, fmt.Sprintf("%ss-%d", what, n), p, leader, b.during, measure)
	} else {
		err = measure()
	}
	return took, cost, err
}

// load has n of them do something for a while, spread over the nodes, and gives
// how long it took each time. A failure fails the benchmark.
func (b *benchmark) load(ctx context.Context, c contestant, n int, during time.Duration, do func(ctx context.Context, w, i int) error) ([]time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var errs []error
	var group sync.WaitGroup
	end := time.Now().Add(during)
	for w := range n {
		group.Go(func() {
			ctx := asWriter(ctx, w)
			var took []time.Duration
			var err error
			for i := 0; err == nil; i++ {
				start := time.Now()
				if start.After(end) {
					break
				}
				err = do(ctx, w, i)
				took = append(took, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all, errs = append(all, took...), append(errs, err)
		})
	}
	group.Wait()
	if len(all) == 0 {
		errs = append(errs, fmt.Errorf("%s: nothing was done", c.name()))
	}
	return all, errors.Join(errs...)
}

// failover kills the leader again and again, and asks every survivor to write
// until one says that a write is committed.
func (b *benchmark) failover(ctx context.Context) error {
	return b.each(ctx, "failover", 1, func(ctx context.Context, c contestant) error {
		for n := range b.kills {
			leader, err := c.leader(ctx)
			if err != nil {
				return err
			}
			start := time.Now()
			if err := c.kill(leader); err != nil {
				return err
			}
			if err := b.firstWrite(ctx, c, leader, fmt.Sprint("failover/", n)); err != nil {
				return err
			}
			b.found.Add(bench.Lower("leader killed to first committed write", "ms"), c.name(), ms(time.Since(start)))
			if err := c.revive(ctx, leader); err != nil {
				return err
			}
		}
		return nil
	})
}

// firstWrite returns at the first write that a survivor acknowledges. A try
// begins every 20 ms whatever became of the others: one store holds a write,
// one fails it at once, and one lets it hang for seconds.
func (b *benchmark) firstWrite(ctx context.Context, c contestant, dead int, key string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	done := make(chan struct{}, nodes)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	for i := range nodes {
		if i == dead {
			continue
		}
		group.Go(func() {
			for ctx.Err() == nil {
				group.Go(func() {
					if c.put(ctx, i, key, []byte("x")) == nil {
						select {
						case done <- struct{}{}:
						default:
						}
					}
				})
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no write within 30 s of the leader's death: %w", ctx.Err())
	}
}

// transfers moves the leadership under one writer on each node, and takes the
// longest write that was under way meanwhile: how long writers were held up.
func (b *benchmark) transfers(ctx context.Context) error {
	return b.each(ctx, "transfer", 1, func(ctx context.Context, c contestant) error {
		for range b.kills {
			leader, err := c.leader(ctx)
			if err != nil {
				return err
			}
			held, failed, err := b.held(ctx, c, func() error { return c.transfer(ctx, (leader+1)%nodes) })
			if err != nil {
				return err
			}
			b.found.Add(bench.Lower("planned transfer, longest write", "ms"), c.name(), ms(held))
			b.found.Add(bench.Lower("planned transfer, failed writes", "1"), c.name(), float64(failed))
		}
		return nil
	})
}

func (b *benchmark) held(ctx context.Context, c contestant, do func() error) (longest time.Duration, failed int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var most, failures atomic.Int64
	var group sync.WaitGroup
	for i := range nodes {
		group.Go(func() {
			ok := time.Now() // since when this writer waits for a write
			for n := 0; ctx.Err() == nil; n++ {
				if err := c.put(ctx, i, fmt.Sprintf("transfer/%d", i), []byte("x")); err != nil {
					if ctx.Err() == nil {
						failures.Add(1)
					}
					continue // it goes on waiting
				}
				took := int64(time.Since(ok))
				for old := most.Load(); took > old && !most.CompareAndSwap(old, took); old = most.Load() {
				}
				ok = time.Now()
			}
		})
	}
	pause(ctx, 300*time.Millisecond)
	most.Store(0)
	err = do()
	pause(ctx, 500*time.Millisecond)
	cancel()
	group.Wait()
	return time.Duration(most.Load()), failures.Load(), err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

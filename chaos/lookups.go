package chaos

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// Lookups is a workload of name look-ups, each as a process of its own would
// make it, through the resolver library of the system.
type Lookups struct {
	// Resolve looks the name up once and returns the addresses.
	Resolve func(ctx context.Context) ([]string, error)
	Workers int           // side by side
	Pause   time.Duration // between two look-ups of a worker

	mu      sync.Mutex
	results []Lookup
}

// Lookup is one look-up.
type Lookup struct {
	Start   time.Time
	Took    time.Duration
	Answers []string
	Err     error
}

// Run looks up until ctx ends; the last ones are let finish.
func (l *Lookups) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for range l.Workers {
		wg.Go(func() {
			pause := time.NewTicker(l.Pause)
			defer pause.Stop()
			for ctx.Err() == nil {
				l.once(context.WithoutCancel(ctx))
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
}

func (l *Lookups) once(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	result := Lookup{Start: time.Now()}
	result.Answers, result.Err = l.Resolve(bounded)
	result.Took = time.Since(result.Start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.results = append(l.results, result)
}

// Results are the look-ups that ended so far, by the time they ended.
func (l *Lookups) Results() []Lookup {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.results)
}

// Failed counts look-ups that gave an error or no address, and finds the
// slowest that succeeded.
func Failed(results []Lookup) (failed []Lookup, slowest time.Duration) {
	for _, r := range results {
		if r.Err != nil || len(r.Answers) == 0 {
			failed = append(failed, r)
			continue
		}
		slowest = max(slowest, r.Took)
	}
	return failed, slowest
}

// Getent parses what "getent ahostsv4 NAME" prints: each address once, in
// the order given.
func Getent(output string) []string {
	var addrs []string
	for line := range strings.Lines(output) {
		if fields := strings.Fields(line); len(fields) > 0 && !slices.Contains(addrs, fields[0]) {
			addrs = append(addrs, fields[0])
		}
	}
	return addrs
}

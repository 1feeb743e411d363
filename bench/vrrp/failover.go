package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/lab"
	"holdfast/lab/routers"
	"holdfast/lab/wire"
)

// faultNames are the faults of a failover, in the order of the table. "kill"
// is SIGKILL to all of keepalived and to Holdfast's agent; "killall" to its
// guard too.
func faultNames() list { return list{"kill", "killall", "link", "term", "partition"} }

func faultText(fault string) string {
	return map[string]string{
		"kill": "kill -9", "killall": "kill -9 of everything", "link": "link down", "term": "SIGTERM",
		"partition": "silent partition", "heal": "partition healed",
	}[fault]
}

// healRuns are few: keepalived takes seconds for each.
const healRuns = 5

// timer is a version and an interval.
type timer struct {
	version  int
	interval time.Duration
}

func (t timer) String() string { return fmt.Sprintf("v%d %s", t.version, t.interval) }

func parseTimer(s string) (timer, error) {
	var t timer
	version, interval, _ := strings.Cut(s, "-")
	if _, err := fmt.Sscanf(version, "v%d", &t.version); err != nil {
		return t, fmt.Errorf("timer %q; want such as v3-100ms", s)
	}
	var err error
	t.interval, err = time.ParseDuration(interval)
	return t, err
}

// failover measures every timer and fault. What waits for seconds runs side by
// side; what a busy machine would change runs alone, the programs in turns.
func (b *bencher) failover(ctx context.Context) error {
	var slow, fast []*duel
	for _, name := range b.timers {
		t, err := parseTimer(name)
		if err != nil {
			return err
		}
		for _, fault := range b.faults {
			d := &duel{bencher: b, timer: t, fault: fault, runs: b.runs, samples: samples{}}
			if fault == "heal" {
				d.runs = healRuns
			}
			if t.interval >= time.Second {
				d.runs = min(d.runs, b.runs1s)
				slow = append(slow, d)
			} else {
				fast = append(fast, d)
			}
		}
	}
	errs := make([]error, len(slow))
	var wg sync.WaitGroup
	for i, d := range slow {
		wg.Go(func() { errs[i] = d.run(ctx, true) })
	}
	wg.Wait()
	err := errors.Join(errs...)
	for _, d := range fast {
		if err == nil {
			err = d.run(ctx, false)
		}
	}
	for _, d := range append(slow, fast...) {
		b.add(fmt.Sprintf("%s, %s", d.timer, faultText(d.fault)), "ms", "", d.samples)
	}
	return err
}

// duel is one fault at one timer, for each program.
type duel struct {
	*bencher
	timer   timer
	fault   string
	runs    int
	mu      sync.Mutex
	samples samples
}

func (d *duel) run(ctx context.Context, together bool) error {
	started := time.Now()
	var sites []*routers.Site
	var err error
	for _, kind := range d.kinds() {
		if kind == routers.Keepalived && d.fault == "killall" {
			continue // it is its "kill"
		}
		s, failed := d.pair(ctx, kind, routers.Options{
			Version: d.timer.version, Interval: d.timer.interval,
			Ping: min(max(d.timer.interval/50, time.Millisecond), 10*time.Millisecond),
		})
		if err = failed; err != nil {
			break
		}
		sites = append(sites, s)
		if err = startPair(ctx, s); err != nil {
			break
		}
	}
	if err == nil && together {
		err = d.together(ctx, sites)
	} else if err == nil {
		err = d.turns(ctx, sites)
	}
	for _, s := range sites {
		if err != nil {
			err = errors.Join(err, s.Lab.DumpLogs(os.Stderr, 20))
		}
		err = errors.Join(err, s.Close())
	}
	fmt.Fprintf(os.Stderr, "%s, %s: %d runs in %s\n", d.timer, faultText(d.fault), d.runs, time.Since(started).Round(time.Second))
	return err
}

func (d *duel) together(ctx context.Context, sites []*routers.Site) error {
	errs := make([]error, len(sites))
	var wg sync.WaitGroup
	for i, s := range sites {
		wg.Go(func() { errs[i] = d.turns(ctx, []*routers.Site{s}) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// turns lets each of the sites fail over once, then again.
func (d *duel) turns(ctx context.Context, sites []*routers.Site) error {
	for range d.runs {
		for _, s := range sites {
			gap, err := d.once(ctx, s)
			kind := s.Members[0].Kind
			if err != nil {
				return fmt.Errorf("%s, %s, %s: %w", kind, d.timer, faultText(d.fault), err)
			}
			d.mu.Lock()
			d.samples[kind] = append(d.samples[kind], float64(gap)/float64(time.Millisecond))
			d.mu.Unlock()
		}
	}
	return nil
}

// patience bounds every wait; the slowest takeover is some 4 intervals.
func patience(interval time.Duration) time.Duration { return 10*interval + 20*time.Second }

// startPair starts both and waits until the first has the address.
func startPair(ctx context.Context, s *routers.Site) error {
	ctx, cancel := context.WithTimeout(ctx, patience(s.Options.Interval))
	defer cancel()
	since := time.Now()
	for _, m := range s.Members {
		if err := m.Start(); err != nil {
			return err
		}
	}
	return settle(ctx, s, since)
}

// settle waits until the first member alone is Active and the client reaches
// it.
func settle(ctx context.Context, s *routers.Site, since time.Time) error {
	if _, err := s.AwaitSole(ctx, s.Members[0], 0, since); err != nil {
		return err
	}
	if s.Ping == nil {
		return nil
	}
	_, err := s.AwaitReply(ctx, s.Members[0], time.Now())
	return err
}

// once makes the fault at a random point of the interval, measures the gap,
// and puts everything back.
func (d *duel) once(ctx context.Context, s *routers.Site) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience(d.timer.interval))
	defer cancel()
	first, second := s.Members[0], s.Members[1]
	wait := time.NewTimer(rand.N(d.timer.interval))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	fault := time.Now()
	undo, err := d.inject(ctx, s)
	if err != nil {
		return 0, err
	}
	if _, err := s.AwaitReply(ctx, second, fault); err != nil {
		return 0, err
	}
	pings := s.Ping.Since(fault.Add(-time.Second))
	if d.fault == "partition" || d.fault == "heal" { // the rule came some ms after the call: the last reply knows
		fault = lastReply(pings, first.MAC)
	}
	gap, ok := wire.Takeover(pings, fault, first.MAC)
	if !ok {
		return 0, errors.New("a reply that was there is gone")
	}
	undone := time.Now()
	if err := undo(); err != nil {
		return 0, err
	}
	if d.fault == "heal" {
		p, err := s.AwaitReply(ctx, first, time.Now())
		if err != nil {
			return 0, err
		}
		gap = p.Reply.Sub(undone)
		return gap, settle(ctx, s, undone)
	}
	// The client forgets only now: one that asks while both are Active may
	// believe the wrong one, and keepalived then leaves it so for a minute.
	if _, err := s.AwaitSole(ctx, first, 0, undone); err != nil {
		return 0, err
	}
	if err := s.Forget(); err != nil {
		return 0, err
	}
	return gap, settle(ctx, s, undone)
}

// inject makes the fault and returns what puts the first member back.
func (d *duel) inject(ctx context.Context, s *routers.Site) (undo func() error, err error) {
	first := s.Members[0]
	again := func() error { return errors.Join(first.Sweep(), first.Start()) }
	switch d.fault {
	case "kill":
		return again, first.Kill()
	case "killall":
		return again, first.KillAll()
	case "link":
		return first.Plug, first.Unplug()
	case "term":
		return func() error { return errors.Join(first.Stop(ctx), first.Start()) }, first.Terminate()
	}
	f, err := first.Host.Drop(lab.Traffic{})
	if err != nil {
		return nil, err
	}
	return f.Heal, nil
}

func lastReply(pings []wire.Ping, by wire.MAC) time.Time {
	var last time.Time
	for _, p := range slices.Backward(pings) {
		if p.By == by && p.Reply.After(last) {
			last = p.Reply
		}
	}
	return last
}

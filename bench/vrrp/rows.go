package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"holdfast/lab/routers"
	"holdfast/lab/wire"
)

// move measures planned moves under pings 10 ms apart: there and back count
// as two. keepalived has none; its nearest is SIGTERM, which the failover rows
// have.
func (b *bencher) move(ctx context.Context) error {
	if !slices.Contains(b.programs, string(routers.Holdfast)) {
		return nil
	}
	const interval, spacing = 100 * time.Millisecond, 10 * time.Millisecond
	s, err := b.pair(ctx, routers.Holdfast, routers.Options{Interval: interval, Ping: spacing})
	if err != nil {
		return err
	}
	lost, took := samples{}, samples{}
	err = startPair(ctx, s)
	for n := 0; n < b.moves && err == nil; n++ {
		var l, t float64
		if l, t, err = moveOnce(ctx, s, n); err == nil {
			lost[routers.Holdfast] = append(lost[routers.Holdfast], l)
			took[routers.Holdfast] = append(took[routers.Holdfast], t)
		}
	}
	if err != nil {
		err = errors.Join(err, s.Lab.DumpLogs(os.Stderr, 40))
	}
	b.add("vip move at v3 100ms, pings 10ms apart: lost pings", "pings", "", lost)
	b.add("vip move at v3 100ms: command to the first reply of the other", "ms", "", took)
	return errors.Join(err, s.Close())
}

// moveOnce moves the address away from its first member, or back to it.
func moveOnce(ctx context.Context, s *routers.Site, n int) (lost, took float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience(s.Options.Interval))
	defer cancel()
	from, to := s.Members[n%2], s.Members[1-n%2]
	start := time.Now()
	if n%2 == 0 {
		err = from.Yield(ctx, 0)
	} else {
		err = to.Return(ctx, 0) // who handed it over is who takes it back
	}
	if err != nil {
		return 0, 0, err
	}
	if _, err := s.AwaitReply(ctx, to, start); err != nil {
		return 0, 0, err
	}
	gap, _ := wire.Takeover(s.Ping.Since(start.Add(-time.Second)), start, from.MAC)
	if _, err := s.AwaitSole(ctx, to, 0, start); err != nil {
		return 0, 0, err
	}
	// A ping counts as lost when a later one was answered long ago.
	end := time.Now()
	if _, err := s.AwaitReply(ctx, to, end.Add(100*time.Millisecond)); err != nil {
		return 0, 0, err
	}
	window := wire.Window{From: start.Add(-100 * time.Millisecond), To: end}
	return float64(wire.Lost(s.Ping.Since(window.From), window)), float64(gap) / float64(time.Millisecond), nil
}

// costTime is how long the cost of many routers is measured.
const costTime = 10 * time.Second

// costRounds is how often: what a wake-up costs on a virtual machine differs
// by a factor of two from one minute to the next.
const costRounds = 7

// many measures what many routers on one interface cost, the programs in turns.
func (b *bencher) many(ctx context.Context) error {
	active, backup, both, rss := samples{}, samples{}, samples{}, samples{}
	for range costRounds {
		for _, kind := range b.kinds() {
			a, p, err := b.costs(ctx, kind)
			if err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
			active[kind] = append(active[kind], a.CPU.Seconds()*1000)
			backup[kind] = append(backup[kind], p.CPU.Seconds()*1000)
			both[kind] = append(both[kind], (a.CPU+p.CPU).Seconds()*1000)
			rss[kind] = append(rss[kind], float64(a.RSS)/(1<<20))
		}
	}
	name := fmt.Sprintf("%d routers at v3 100ms", b.routers)
	b.add(name+", Active: CPU in 10s", "ms", "", active)
	b.add(name+", Backup: CPU in 10s", "ms", "", backup)
	b.add(name+", both: CPU in 10s", "ms", "", both)
	b.add(name+", Active: RSS of all processes", "MiB", "", rss)
	return nil
}

func (b *bencher) costs(ctx context.Context, kind routers.Kind) (active, backup routers.Cost, err error) {
	s, err := b.pair(ctx, kind, routers.Options{Interval: 100 * time.Millisecond, Routers: b.routers})
	if err != nil {
		return active, backup, err
	}
	measure := func() error {
		if err := startPair(ctx, s); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, patience(s.Options.Interval))
		defer cancel()
		since := time.Now()
		for i := range b.routers {
			if _, err := s.AwaitSole(waiting, s.Members[0], i, since); err != nil {
				return err
			}
		}
		var before, after [2]routers.Cost
		for i, m := range s.Members {
			if before[i], err = m.Cost(); err != nil {
				return err
			}
		}
		began := time.Now()
		select {
		case <-time.After(costTime):
		case <-ctx.Done():
			return ctx.Err()
		}
		for i, m := range s.Members {
			if after[i], err = m.Cost(); err != nil {
				return err
			}
		}
		for i := range s.Members {
			used := after[i].CPU - before[i].CPU
			after[i].CPU = time.Duration(float64(used) * costTime.Seconds() / time.Since(began).Seconds())
		}
		active, backup = after[0], after[1]
		return nil
	}
	if err = measure(); err != nil {
		err = errors.Join(err, s.Lab.DumpLogs(os.Stderr, 20))
	}
	return active, backup, errors.Join(err, s.Close())
}

// busy counts false failovers at 100 ms while every core has two programs that
// want all of it. The pairs bear the same load at the same time.
func (b *bencher) busy(ctx context.Context) error {
	var sites []*routers.Site
	var err error
	for _, kind := range b.kinds() {
		s, failed := b.pair(ctx, kind, routers.Options{Interval: 100 * time.Millisecond})
		if err = failed; err != nil {
			break
		}
		sites = append(sites, s)
		if err = startPair(ctx, s); err != nil {
			break
		}
	}
	count := samples{}
	if err == nil {
		began := time.Now()
		if err = burn(ctx, b.load); err == nil {
			window := wire.Window{From: began, To: time.Now()}
			for _, s := range sites {
				kind := s.Members[0].Kind
				count[kind] = []float64{float64(falseFailovers(s, window))}
			}
		}
	}
	for _, s := range sites {
		err = errors.Join(err, s.Close())
	}
	b.add(fmt.Sprintf("false failovers in %s at v3 100ms, all cores busy", b.load), "times", "", count)
	return err
}

// falseFailovers counts how often another than the first member, who lives all
// the time, began to advertise.
func falseFailovers(s *routers.Site, w wire.Window) int {
	n := 0
	for _, span := range wire.Actives(s.Watch.Events(), s.Router(0)) {
		if span.By != s.Members[0].MAC && span.Start.After(w.From) && span.Start.Before(w.To) {
			n++
		}
	}
	return n
}

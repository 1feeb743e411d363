// Command ntp compares the NTP server with chronyd, one after the other on
// this machine and in turn: answers per second of the server's CPU, what a
// chronyd client sees of the clock (whose true offset is 0: it is the same),
// idle and flooded, and the server's memory. Nothing touches the clock.
//
// All traffic is on loopback. hack/peers gets chronyd.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench ntp:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	rounds := flag.Int("rounds", 5, "pairs of measurements, one of each server")
	idle := flag.Duration("idle", 10*time.Second, "how long a client watches an idle server")
	flood := flag.Duration("flood", 6*time.Second, "how long a flood lasts")
	peers := flag.String("peers", "build/peers/root", "where hack/peers unpacked chronyd")
	out := flag.String("out", "build/bench/ntp.json", "where the figures go")
	serve := flag.String("serve", "", "be the server, on this ADDR:PORT (the benchmark starts itself so)")
	drown := flag.String("drown", "", "be the flood, against this ADDR:PORT (likewise)")
	flag.Parse()
	if *serve != "" {
		return serveMain(ctx, *serve)
	}
	if *drown != "" {
		return drownMain(*drown, *flood)
	}
	chronyd, err := filepath.Abs(filepath.Join(*peers, "usr/sbin/chronyd"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(chronyd); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("chronyd is missing, run hack/peers: %w", err)
	}
	dir, err := os.MkdirTemp("", "holdfast-bench-ntp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{chronyd: chronyd, dir: dir, idle: *idle, flood: *flood, found: map[string]map[string][]float64{}, seen: map[string]map[string][]float64{}}
	for round := range *rounds + 1 { // the first warms up
		for _, server := range []string{ours, peer} {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round, *rounds, server)
			if err := b.measure(ctx, server, round > 0); err != nil {
				return fmt.Errorf("%s: %w", server, err)
			}
		}
	}
	b.pool()
	if err := b.print(os.Stdout); err != nil {
		return err
	}
	return b.write(*out, *rounds)
}

// The servers that are compared.
const (
	ours = "holdfast"
	peer = "chrony 4.3"
)

// figure is one thing that is measured.
type figure struct{ name, unit, better string }

// figures are all of them, in the order of the table.
var figures = []figure{
	{"answers per second of CPU, on a processor of its own", "1/s", "higher"},
	{"answers per second of CPU, beside the flood", "1/s", "higher"},
	{"answers per second, closed loop", "1/s", "higher"},
	{"lost in the flood", "%", "lower"},
	{"offset p50, idle", "us", "lower"},
	{"offset p99, idle", "us", "lower"},
	{"offset p99, idle, of all rounds' samples", "us", "lower"},
	{"offset p50, idle, interleaved", "us", "lower"},
	{"offset p99, idle, interleaved", "us", "lower"},
	{"offset p99, idle, interleaved, of all rounds' samples", "us", "lower"},
	{"offset p50, flooded", "us", "lower"},
	{"offset p99, flooded", "us", "lower"},
	{"offset p99, flooded, of all rounds' samples", "us", "lower"},
	{"memory (RSS) after the flood", "MB", "lower"},
}

// spread is what several runs gave.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	return spread{v[len(v)/2], v[0], v[len(v)-1]}
}

// print writes the table.
func (b *bench) print(w *os.File) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\tunit\t%s\t%s\tratio\n", ours, peer)
	for _, f := range figures {
		a, p := spreadOf(b.found[ours][f.name]), spreadOf(b.found[peer][f.name])
		fmt.Fprintf(t, "%s\t%s\t%.4g (%.4g-%.4g)\t%.4g (%.4g-%.4g)\t%.2f\n", f.name, f.unit, a.Median, a.Min, a.Max, p.Median, p.Min, p.Max, a.Median/p.Median)
	}
	return t.Flush()
}

// write writes the figures for other programs.
func (b *bench) write(path string, rounds int) error {
	type result struct {
		Name   string            `json:"name"`
		Unit   string            `json:"unit"`
		Better string            `json:"better"`
		Ours   spread            `json:"ours"`
		Peers  map[string]spread `json:"peers"`
		Runs   int               `json:"runs"`
	}
	var all []result
	for _, f := range figures {
		all = append(all, result{f.name, f.unit, f.better, spreadOf(b.found[ours][f.name]),
			map[string]spread{peer: spreadOf(b.found[peer][f.name])}, rounds})
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// Command ntp compares the NTP server with chronyd, one after the other on
// this machine and in turn: answers per second of the server's CPU, what a
// chronyd client sees of the clock (whose true offset is 0: it is the same),
// idle and flooded, and the server's memory. Nothing touches the clock.
//
// All traffic is on loopback. hack/peers gets chronyd.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"holdfast/bench"
)

func main() { os.Exit(bench.Main("ntp", run)) }

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
	b := bencher{chronyd: chronyd, dir: dir, idle: *idle, flood: *flood, found: bench.NewSamples(quantities()...), seen: map[string]map[string][]float64{}}
	for round := range *rounds + 1 { // the first warms up
		for _, server := range []string{ours, peer} {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round, *rounds, server)
			if err := b.measure(ctx, server, round > 0); err != nil {
				return fmt.Errorf("%s: %w", server, err)
			}
		}
	}
	b.pool()
	results := b.found.Results(ours)
	return errors.Join(bench.Print(os.Stdout, results), bench.Save(*out, results))
}

// The servers that are compared.
const (
	ours = "holdfast"
	peer = "chrony 4.3"
)

// quantities are all that is measured, in the order of the table.
func quantities() []bench.Quantity {
	return []bench.Quantity{
		bench.Higher("answers per second of CPU, on a processor of its own", "1/s"),
		bench.Higher("answers per second of CPU, beside the flood", "1/s"),
		bench.Higher("answers per second, closed loop", "1/s"),
		bench.Lower("lost in the flood", "%"),
		bench.Lower("offset p50, idle", "us"),
		bench.Lower("offset p99, idle", "us"),
		bench.Lower("offset p99, idle, of all rounds' samples", "us"),
		bench.Lower("offset p50, idle, interleaved", "us"),
		bench.Lower("offset p99, idle, interleaved", "us"),
		bench.Lower("offset p99, idle, interleaved, of all rounds' samples", "us"),
		bench.Lower("offset p50, flooded", "us"),
		bench.Lower("offset p99, flooded", "us"),
		bench.Lower("offset p99, flooded, of all rounds' samples", "us"),
		bench.Lower("memory (RSS) after the flood", "MB"),
	}
}

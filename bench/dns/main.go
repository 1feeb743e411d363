// Command dns measures Holdfast's DNS server beside the servers that it
// replaces, in one run, on one machine, with one zone: BIND, Unbound, Knot and
// NSD as Debian has them, and a bare UDP echo as the ceiling. It writes
// build/bench/dns.json and prints a table; see docs/BENCHMARKS.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"holdfast/bench"
)

type options struct {
	holdfast string        // the program
	out      string        // where the figures are written
	rounds   int           // how often each is measured
	length   time.Duration // of one measurement
	names    int           // other names in the zone
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "echo" { // ended by a signal
		if err := echo(); err != nil {
			fmt.Fprintf(os.Stderr, "bench dns: echo: %v\n", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(bench.Main("dns", run))
}

func run(ctx context.Context) error {
	var o options
	flag.StringVar(&o.holdfast, "holdfast", "build/holdfast", "the program to measure")
	flag.StringVar(&o.out, "out", "build/bench/dns.json", "where the figures are written")
	flag.IntVar(&o.rounds, "rounds", 10, "how often each server is measured")
	flag.DurationVar(&o.length, "length", 3*time.Second, "how long each measurement takes")
	flag.IntVar(&o.names, "names", 3000, "other service names in the zone")
	flag.Parse()
	return compare(ctx, o)
}

// compare measures everything and writes it down.
func compare(ctx context.Context, o options) (err error) {
	if err := tools(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-dns")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // servers that change their user look in
		return err
	}
	stopUpstream, err := serveUpstream()
	if err != nil {
		return err
	}
	defer stopUpstream()
	field, err := startAll(ctx, o, dir)
	defer func() { err = errors.Join(err, field.stop()) }()
	if err != nil {
		return err
	}
	r := bench.NewSamples()
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
		if err := field.round(ctx, o, round, r); err != nil {
			return err
		}
	}
	results := r.Results(oursName)
	return errors.Join(bench.Print(os.Stdout, results), bench.Save(o.out, results))
}

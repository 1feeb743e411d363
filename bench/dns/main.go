// Command dns measures Holdfast's DNS server beside the servers that it
// replaces, in one run, on one machine, with one zone: BIND, Unbound, Knot and
// NSD as Debian has them, and a bare UDP echo as the ceiling. It writes
// build/bench/dns.json and prints a table; see docs/BENCHMARKS.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"
)

type options struct {
	holdfast string        // the program
	out      string        // where the figures are written
	rounds   int           // how often each is measured
	length   time.Duration // of one measurement
	names    int           // other names in the zone
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "echo" {
		fail(echo())
		return
	}
	var o options
	flag.StringVar(&o.holdfast, "holdfast", "build/holdfast", "the program to measure")
	flag.StringVar(&o.out, "out", "build/bench/dns.json", "where the figures are written")
	flag.IntVar(&o.rounds, "rounds", 10, "how often each server is measured")
	flag.DurationVar(&o.length, "length", 3*time.Second, "how long each measurement takes")
	flag.IntVar(&o.names, "names", 3000, "other service names in the zone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, o)
	stop()
	fail(err)
}

func fail(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench-dns: %v\n", err)
		os.Exit(1)
	}
}

// bench measures everything and writes it down.
func bench(ctx context.Context, o options) (err error) {
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
	r := newResults()
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
		if err := field.round(ctx, o, round, r); err != nil {
			return err
		}
	}
	figures := r.figures(o.rounds)
	if err := write(o.out, figures); err != nil {
		return err
	}
	return show(figures)
}

func write(path string, figures []figure) error {
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func show(figures []figure) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "what\twho\tmedian\tleast\tmost\tours/theirs\tleast\tmost\t")
	for _, f := range figures {
		fmt.Fprintf(w, "%s [%s, %s is better]\tholdfast\t%.4g\t%.4g\t%.4g\t\t\t\t\n", f.Name, f.Unit, f.Better, f.Ours.Median, f.Ours.Min, f.Ours.Max)
		for _, name := range sortedKeys(f.Peers) {
			p, q := f.Peers[name], f.Ratios[name]
			fmt.Fprintf(w, "\t%s\t%.4g\t%.4g\t%.4g\t%.3f\t%.3f\t%.3f\t\n", name, p.Median, p.Min, p.Max, q.Median, q.Min, q.Max)
		}
	}
	return w.Flush()
}

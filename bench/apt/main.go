// Command apt compares the package proxy with apt-cacher-ng and with nginx's
// proxy_cache, in turn and in one run, over the same origin on loopback: hits
// of small and large files, a cold installation by apt-get, the time to the
// first byte of a cold file, memory with many clients.
//
// It needs nginx-light and apt-cacher-ng of Debian.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench apt:", err)
		os.Exit(1)
	}
}

// The servers that are compared. direct is the origin itself.
const (
	ours   = "holdfast"
	nginx  = "nginx"
	acng   = "apt-cacher-ng"
	direct = "direct"
)

func run(ctx context.Context) error {
	rounds := flag.Int("rounds", 3, "measurements of each server, in turn")
	during := flag.Duration("during", 2*time.Second, "how long a load lasts")
	out := flag.String("out", "build/bench/apt.json", "where the figures go")
	only := flag.String("only", "direct,holdfast,nginx,apt-cacher-ng", "which servers")
	serve := flag.String("serve", "", "be the proxy, with this cluster file (the benchmark starts itself so)")
	origin := flag.String("origin", "", "be the origin of this directory (likewise)")
	at := flag.String("at", "", "address of -serve and -origin")
	flag.Parse()
	if *serve != "" {
		return serveMain(ctx, *serve, *at)
	}
	if *origin != "" {
		return originMain(*origin, *at)
	}
	for _, program := range []string{nginx, acng, "apt-get", "apt-ftparchive"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing: apt-get install nginx-light apt-cacher-ng apt-utils (with a policy-rc.d that starts no daemon)", program)
		}
	}
	dir, err := os.MkdirTemp("", "holdfast-bench-apt")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // apt-cacher-ng and nginx drop privileges
		return err
	}
	b := &bench{dir: dir, during: *during, found: map[string]map[string][]float64{}}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.origin.stop()
	for round := range *rounds {
		for _, server := range strings.Split(*only, ",") {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, *rounds, server)
			if err := b.measure(ctx, server); err != nil {
				return errors.Join(fmt.Errorf("%s: %w", server, err), b.print(os.Stdout)) // what there is so far
			}
		}
	}
	if err := b.print(os.Stdout); err != nil {
		return err
	}
	return b.write(*out, *rounds)
}

// figure is one thing that is measured.
type figure struct{ name, unit, better string }

// figures are all of them, in the order of the table.
func figures() []figure {
	return []figure{
		{"10 KB hits, 1 connection", "1/s", "higher"},
		{"10 KB hits, 64 connections", "1/s", "higher"},
		{"CPU per 10 KB hit, 64 connections", "us", "lower"},
		{"100 MB hits, 1 client", "MB/s", "higher"},
		{"100 MB hits, 16 clients", "MB/s", "higher"},
		{"cold installation of 300 packages", "s", "lower"},
		{"the same, all hits", "s", "lower"},
		{"first byte of a cold 10 KB file, median", "ms", "lower"},
		{"memory (RSS) with 500 clients", "MB", "lower"},
	}
}

// spread is what several runs gave.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) (spread, bool) {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}, false
	}
	return spread{v[len(v)/2], v[0], v[len(v)-1]}, true
}

func (b *bench) note(server, name string, value float64) {
	if b.found[server] == nil {
		b.found[server] = map[string][]float64{}
	}
	b.found[server][name] = append(b.found[server][name], value)
}

// print writes the table.
func (b *bench) print(w *os.File) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\tunit\t%s\t%s\t%s\t%s\n", ours, nginx, acng, direct)
	for _, f := range figures() {
		fmt.Fprintf(t, "%s\t%s", f.name, f.unit)
		for _, server := range []string{ours, nginx, acng, direct} {
			if s, ok := spreadOf(b.found[server][f.name]); ok {
				fmt.Fprintf(t, "\t%.4g (%.4g-%.4g)", s.Median, s.Min, s.Max)
			} else {
				fmt.Fprint(t, "\t-")
			}
		}
		fmt.Fprintln(t)
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
	for _, f := range figures() {
		r := result{Name: f.name, Unit: f.unit, Better: f.better, Peers: map[string]spread{}, Runs: rounds}
		r.Ours, _ = spreadOf(b.found[ours][f.name])
		for _, peer := range []string{nginx, acng, direct} {
			if s, ok := spreadOf(b.found[peer][f.name]); ok {
				r.Peers[peer] = s
			}
		}
		all = append(all, r)
	}
	data, err := json.MarshalIndent(all, "", "  ")
	return errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, append(data, '\n'), 0o644))
}

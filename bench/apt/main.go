// Command apt compares the package proxy with apt-cacher-ng and with nginx's
// proxy_cache, in turn and in one run, over the same origin on loopback: hits
// of small and large files, a cold installation by apt-get, the time to the
// first byte of a cold file, memory with many clients.
//
// It needs nginx-light and apt-cacher-ng of Debian.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"holdfast/bench"
)

func main() { os.Exit(bench.Main("apt", run)) }

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
	b := &bencher{dir: dir, during: *during, found: bench.NewSamples(quantities()...)}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	defer b.origin.stop()
	for round := range *rounds {
		for _, server := range strings.Split(*only, ",") {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, *rounds, server)
			if err := b.measure(ctx, server); err != nil {
				return errors.Join(fmt.Errorf("%s: %w", server, err), bench.Print(os.Stdout, b.found.Results(ours))) // what there is so far
			}
		}
	}
	results := b.found.Results(ours)
	return errors.Join(bench.Print(os.Stdout, results), bench.Save(*out, results))
}

// quantities are all that is measured, in the order of the table.
func quantities() []bench.Quantity {
	return []bench.Quantity{
		bench.Higher("10 KB hits, 1 connection", "1/s"),
		bench.Higher("10 KB hits, 64 connections", "1/s"),
		bench.Lower("CPU per 10 KB hit, 64 connections", "us"),
		bench.Higher("100 MB hits, 1 client", "MB/s"),
		bench.Higher("100 MB hits, 16 clients", "MB/s"),
		bench.Lower("cold installation of 300 packages", "s"),
		bench.Lower("the same, all hits", "s"),
		bench.Lower("first byte of a cold 10 KB file, median", "ms"),
		bench.Lower("memory (RSS) with 500 clients", "MB"),
	}
}

// Command lb measures Holdfast's load balancer beside keepalived's with an
// equivalent configuration, in one virtual machine and one run: how long a dead
// real server stays in the table, and what clients lose when the director's
// cable is cut. See "make bench-lb".
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"holdfast/bench"
	"holdfast/lab"
	"holdfast/lab/keepalived"
	"holdfast/lab/vm"
)

func main() {
	if lab.Init() {
		return
	}
	os.Exit(bench.Main("lb", run))
}

func run(ctx context.Context) error {
	binary := flag.String("binary", "build/holdfast", "the program")
	out := flag.String("out", "build/bench/lb.json", "where the figures go")
	runs := flag.Int("runs", 5, "rounds of each program")
	inside := flag.Bool("inside", false, "this is the machine")
	flag.Parse()
	if *inside {
		return measure(ctx, *binary, *runs)
	}
	return boot(ctx, *binary, *out, *runs)
}

// checks is the interval of both programs' checks: a round's fault comes at a
// point of its own in it, the same for both.
const checks = time.Second

// roundTime is how long a round of both programs may take.
const roundTime = 4 * time.Minute

// boot boots the machine, and prints and keeps what was measured in it.
func boot(ctx context.Context, binary, out string, runs int) error {
	if err := vm.Probe(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	m, err := vm.New(ctx, vm.Options{Modules: []string{"ip_vs", "ip_vs_rr"}, Expose: []string{self, binary}})
	if err != nil {
		return err
	}
	if err := m.PowerOn(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.PowerOff()) }()
	var said bytes.Buffer
	limited, cancel := context.WithTimeout(ctx, time.Duration(runs+1)*roundTime)
	defer cancel()
	p, err := m.Start(vm.Cmd{Args: []string{self, "-inside", "-binary", binary, "-runs", strconv.Itoa(runs)}, Stdout: &said, Stderr: os.Stderr})
	if err != nil {
		return err
	}
	if err := p.Wait(limited); err != nil {
		return err
	}
	var results []bench.Result
	if err := json.Unmarshal(said.Bytes(), &results); err != nil {
		return fmt.Errorf("what the machine said: %w", err)
	}
	return errors.Join(bench.Print(os.Stdout, results), bench.Save(out, results))
}

// measure runs in the machine: rounds of each program in turn, and prints the
// results as JSON.
func measure(ctx context.Context, binary string, runs int) error {
	version, err := keepalived.Version(ctx)
	if err != nil {
		return err
	}
	b, err := newBed(binary)
	if err != nil {
		return err
	}
	defer b.lab.Close()
	samples := bench.NewSamples(
		bench.Lower(removal, "ms"),
		bench.Lower(recovery, "ms"),
		bench.Lower(outage, "ms"),
		bench.Lower(lostPackets, "packets of 10 ms"),
		bench.Lower(lostConnections, "connections of 50 ms"),
	)
	programs := []contestant{b.holdfast(), b.keepalived(version)}
	for n := range runs {
		for _, c := range programs {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", n+1, runs, c.name)
			figures, err := b.round(ctx, c, checks*time.Duration(2*n+1)/time.Duration(2*runs))
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", c.name, err), b.lab.DumpLogs(os.Stderr, 30))
			}
			for what, v := range figures {
				samples.Note(what, c.name, v)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(samples.Results(programs[0].name))
}

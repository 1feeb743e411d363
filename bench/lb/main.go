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
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	binary := flag.String("binary", "build/holdfast", "the program")
	out := flag.String("out", "build/bench/lb.json", "where the figures go")
	runs := flag.Int("runs", 5, "rounds of each program")
	inside := flag.Bool("inside", false, "this is the machine")
	flag.Parse()
	err := error(nil)
	if *inside {
		err = measure(ctx, *binary, *runs)
	} else {
		err = run(ctx, *binary, *out, *runs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-lb:", err)
		stop()
		os.Exit(1)
	}
}

// checks is the interval of both programs' checks: a round's fault comes at a
// point of its own in it, the same for both.
const checks = time.Second

// roundTime is how long a round of both programs may take.
const roundTime = 4 * time.Minute

// run boots the machine, and prints and keeps what was measured in it.
func run(ctx context.Context, binary, out string, runs int) error {
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
	samples := map[string]map[string][]float64{} // by figure and program
	programs := []contestant{b.holdfast(), b.keepalived(version)}
	for n := range runs {
		for _, c := range programs {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", n+1, runs, c.name)
			figures, err := b.round(ctx, c, checks*time.Duration(2*n+1)/time.Duration(2*runs))
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", c.name, err), b.lab.DumpLogs(os.Stderr, 30))
			}
			for what, v := range figures {
				if samples[what] == nil {
					samples[what] = map[string][]float64{}
				}
				samples[what][c.name] = append(samples[what][c.name], v)
			}
		}
	}
	var results []bench.Result
	for _, f := range []struct{ name, unit string }{{removal, "ms"}, {recovery, "ms"}, {outage, "ms"}, {lostPackets, "packets of 10 ms"}, {lostConnections, "connections of 50 ms"}} {
		ours := bench.Sum(samples[f.name][programs[0].name])
		results = append(results, bench.Result{
			Name: f.name, Unit: f.unit, Better: "lower", Runs: runs, Ours: &ours,
			Peers: map[string]bench.Figures{programs[1].name: bench.Sum(samples[f.name][programs[1].name])},
		})
	}
	return json.NewEncoder(os.Stdout).Encode(results)
}

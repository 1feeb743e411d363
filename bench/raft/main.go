// Command raft compares the replicated store with etcd: three nodes each on
// loopback, both with mutual TLS between the nodes and to the clients, on the
// same disk, in turn and in one run. It measures writes by 1 to 256 writers
// that are spread over the nodes, linearizable reads by as many, the time from the leader's death to the first
// write that is committed, and what writers notice of a planned transfer.
//
// Both are spoken to over HTTP/2 by the same client: etcd by gRPC, ours by the
// API's PUT. It needs etcd-server of Debian, and the built program.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/bench"
)

func main() { os.Exit(bench.Main("raft", run)) }

// contestant is a store of three nodes.
type contestant interface {
	name() string
	start(ctx context.Context) error // returns when writes are taken
	stop()
	put(ctx context.Context, node int, key string, value []byte) error
	get(ctx context.Context, node int, key string) error // linearizable
	leader(ctx context.Context) (int, error)
	kill(node int) error                        // as a power cut of the process
	revive(ctx context.Context, node int) error // returns when all nodes are up to date
	transfer(ctx context.Context, to int) error
	programs() []*program
}

func run(ctx context.Context) error {
	rounds := flag.Int("rounds", 3, "measurements of each store, in turn")
	during := flag.Duration("during", 5*time.Second, "how long writers write")
	kills := flag.Int("kills", 30, "leaders that are killed, and transfers")
	rows := flag.String("rows", "writes,reads,failover,transfer", "what is measured")
	only := flag.String("only", "holdfast,etcd", "which stores")
	counts := flag.String("writers", "1,16,64,256", "how many writers or readers there are at a time")
	profiles := flag.String("profiles", "", "a directory to write profiles of our nodes to, taken while writers write; none unless said")
	binary := flag.String("binary", "build/holdfast", "the program")
	dir := flag.String("dir", "", "where both keep their data; a temporary directory unless said")
	out := flag.String("out", "build/bench/raft.json", "where the figures go")
	flag.Parse()
	if *dir == "" {
		made, err := os.MkdirTemp("", "holdfast-bench-raft")
		if err != nil {
			return err
		}
		defer os.RemoveAll(made)
		*dir = made
	}
	setup, err := prepare(*dir, *binary)
	if err != nil {
		return err
	}
	writers, err := numbers(*counts)
	if err != nil {
		return fmt.Errorf("-writers %q: %w", *counts, err)
	}
	var all []contestant
	for _, name := range strings.Split(*only, ",") {
		switch name {
		case ours:
			all = append(all, newHoldfast(setup))
		case "etcd":
			etcd, err := newEtcd(setup)
			if err != nil {
				return err
			}
			all = append(all, etcd)
		default:
			return fmt.Errorf("-only %q: must be of holdfast, etcd", name)
		}
	}
	b := &benchmark{contestants: all, rounds: *rounds, during: *during, kills: *kills, writers: writers, profiles: *profiles, found: bench.NewSamples()}
	for _, row := range strings.Split(*rows, ",") {
		measure, ok := map[string]func(context.Context) error{"writes": b.writes, "reads": b.reads, "failover": b.failover, "transfer": b.transfers}[row]
		if !ok {
			return fmt.Errorf("-rows %q: must be of writes, reads, failover, transfer", row)
		}
		if err := measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", row, err)
		}
	}
	results := b.found.Results(ours)
	return errors.Join(bench.Print(os.Stdout, results), bench.Save(*out, results))
}

// numbers reads a list of positive numbers.
func numbers(list string) (all []int, err error) {
	for _, text := range strings.Split(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 10000 {
			return nil, fmt.Errorf("%q: want a number from 1 to 10000", text)
		}
		all = append(all, n)
	}
	return all, nil
}

const ours = "holdfast"

// benchmark gathers samples.
type benchmark struct {
	contestants []contestant
	rounds      int
	during      time.Duration
	kills       int
	writers     []int
	profiles    string // "": none
	found       *bench.Samples
}

// each runs a measurement of every store in turn, each begun afresh.
func (b *benchmark) each(ctx context.Context, what string, rounds int, measure func(context.Context, contestant) error) error {
	for round := range rounds {
		order := slices.Clone(b.contestants)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, c := range order {
			fmt.Fprintf(os.Stderr, "%s, round %d of %d: %s\n", what, round+1, rounds, c.name())
			err := c.start(ctx)
			if err == nil {
				err = measure(ctx, c)
			}
			c.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name(), err)
			}
		}
	}
	return nil
}

// program is a process of a store, with its log in a file.
type program struct {
	args []string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *program) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	p.done = done
	go func() {
		_ = p.cmd.Wait() // killed, as it should be
		close(done)
	}()
	return nil
}

// kill ends the process at once and waits until it is gone.
func (p *program) kill() error {
	if p.cmd == nil || p.cmd.Process == nil {
		return nil
	}
	err := p.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-p.done
	return err
}

// logs is where the end of each log is found when something fails.
func logs(dir string) string { return filepath.Join(dir, "*.log") }

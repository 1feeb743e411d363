// Command vrrp measures pairs of keepalived and of Holdfast, with the same
// timers and priorities, in one run: how long an address is away after each
// kind of fault, what many routers cost, and what a busy machine does to them.
// See "make bench-vrrp".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/bench"
	"holdfast/lab"
	"holdfast/lab/keepalived"
	"holdfast/lab/routers"
)

func main() {
	if lab.Init() || burnInit() {
		return
	}
	os.Exit(bench.Main("vrrp", func(ctx context.Context) error { return run(ctx, os.Args[1:]) }))
}

// options are the command line.
type options struct {
	binary   string
	out      string
	rows     list
	timers   list
	faults   list
	programs list
	runs     int
	runs1s   int
	moves    int
	routers  int
	load     time.Duration
}

// list is a flag of several words.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

// Set takes words with commas between.
func (l *list) Set(s string) error {
	*l = strings.Split(s, ",")
	return nil
}

func parse(args []string) (options, error) {
	o := options{
		rows:     list{"failover", "move", "many", "load"},
		timers:   list{"v2-1s", "v3-1s", "v3-100ms", "v3-10ms"},
		faults:   faultNames(),
		programs: list{string(routers.Keepalived), string(routers.Holdfast)},
	}
	f := flag.NewFlagSet("bench-vrrp", flag.ContinueOnError)
	f.StringVar(&o.binary, "binary", "build/holdfast", "the holdfast program")
	f.StringVar(&o.out, "out", "build/bench/vrrp.json", "where the results are kept; those of other rows stay there")
	f.Var(&o.rows, "rows", "what to measure: failover, move, many, load")
	f.Var(&o.timers, "timers", "of failover: versions and intervals")
	f.Var(&o.faults, "faults", "of failover")
	f.Var(&o.programs, "programs", "whom to measure")
	f.IntVar(&o.runs, "runs", 30, "of each failover below one second")
	f.IntVar(&o.runs1s, "runs-1s", 10, "of each failover at one second and more")
	f.IntVar(&o.moves, "moves", 30, "planned moves")
	f.IntVar(&o.routers, "routers", 255, "routers on one interface")
	f.DurationVar(&o.load, "load", 10*time.Minute, "how long the machine is kept busy")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for _, fault := range o.faults {
		if !slices.Contains(append(faultNames(), "heal"), fault) {
			return o, fmt.Errorf("no fault %q; there are %s and heal", fault, strings.Join(faultNames(), ", "))
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	version, err := keepalived.Version(ctx)
	if err != nil {
		return fmt.Errorf("%w; hack/deps installs it", err)
	}
	b := &bencher{options: o, peer: "keepalived " + version}
	rows := map[string]func(context.Context) error{
		"failover": b.failover, "move": b.move, "many": b.many, "load": b.busy,
	}
	for _, name := range o.rows {
		row := rows[name]
		if row == nil {
			return fmt.Errorf("no row %q", name)
		}
		// What was measured before a row that fails is worth keeping.
		if err := row(ctx); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", name, err), b.finish())
		}
	}
	return b.finish()
}

// bencher collects.
type bencher struct {
	options
	peer    string
	results []bench.Result
}

func (b *bencher) finish() error {
	if len(b.results) == 0 {
		return nil
	}
	if err := bench.Print(os.Stdout, b.results); err != nil {
		return err
	}
	return bench.Save(b.out, b.results)
}

// samples are what was measured, by program.
type samples map[routers.Kind][]float64

// add makes a result of samples.
func (b *bencher) add(name, unit, note string, s samples) {
	r := bench.Result{Name: name, Unit: unit, Better: "lower", Note: note}
	for kind, values := range s {
		if len(values) == 0 {
			continue
		}
		r.Runs = max(r.Runs, len(values))
		f := bench.Sum(values)
		if kind == routers.Holdfast {
			r.Ours = &f
		} else {
			r.Peers = map[string]bench.Figures{b.peer: f}
		}
	}
	if r.Runs > 0 {
		b.results = append(b.results, r)
	}
}

// kinds are the programs to measure.
func (b *bencher) kinds() []routers.Kind {
	var kinds []routers.Kind
	for _, p := range b.programs {
		kinds = append(kinds, routers.Kind(p))
	}
	return kinds
}

// pair makes two hosts of one kind with the priorities of the comparison, the
// first of which becomes Active.
func (b *bencher) pair(ctx context.Context, kind routers.Kind, o routers.Options) (*routers.Site, error) {
	o.Members = []routers.Kind{kind, kind}
	o.Priorities = []int{100, 50}
	if kind == routers.Holdfast {
		var err error
		if o.Binary, err = filepath.Abs(b.binary); err != nil {
			return nil, err
		}
	}
	return routers.New(ctx, o)
}

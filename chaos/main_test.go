package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
)

// Tests that bound how long something takes run one by one; those that look
// for what was lost run side by side after them. What the product promises is
// measured without the machine's own stalls (package stall). All other bounds
// are for a machine that is slow and stands still for seconds now and then: what
// they wait for comes, or never.

// patience is such a bound: some processes start, and agree on something.
const patience = time.Minute

// disturbing is a stall that may cost more than its own time: who does not hear
// a leader for so long asks for another one.
const disturbing = 100 * time.Millisecond

// heartbeatTimeout is how long a server hears nothing from its leader until it asks
// for another one (raftstore's timings, at the timing of production).
const heartbeatTimeout = 300 * time.Millisecond

// watchMachine records stalls of the processors and of the disk that the nodes'
// stores are on.
func watchMachine(t *testing.T) *stall.Watch {
	t.Helper()
	return stall.Test(t, t.TempDir())
}

// lookedUp judges look-ups that failed, and returns the slowest of the others. A
// stall that is as long as the resolver's own time-out may be at a look-up's
// expense.
func lookedUp(t *testing.T, machine *stall.Watch, when string, all []chaos.Lookup) (failed int, slowest time.Duration) {
	t.Helper()
	wrong, slowest := chaos.Failed(all)
	for _, l := range wrong {
		tell := t.Logf
		stood := machine.Within(l.Start, l.Start.Add(l.Took))
		if stood < resolverTimeout {
			failed++
			tell = t.Errorf
		}
		tell("%s: a look-up failed after %v, of which the machine stood still for %v: %v %v", when, l.Took, stood, l.Answers, l.Err)
	}
	return failed, slowest
}

// resolverTimeout is how long clients wait for a server (options timeout:1).
const resolverTimeout = time.Second

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	if site.Init() {
		return
	}
	os.Exit(site.RunTests(m, &binary))
}

// newSite puts the reference cluster on a lab. Nothing is started.
func newSite(t *testing.T, expose ...string) *site.Site {
	t.Helper()
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: "../examples/scibian.yaml", Expose: expose,
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// electedSite is a site of another file, whose agents have a leader.
func electedSite(t *testing.T, file string, expose ...string) *site.Site {
	t.Helper()
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: file, Expose: expose,
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		if err := n.StartAgent(); err != nil {
			t.Fatal(err)
		}
	}
	waitLeader(t, s.Nodes, "")
	return s
}

// startedSite is a site whose servers have all joined and answer everything.
func startedSite(t *testing.T) *site.Site {
	t.Helper()
	s := newSite(t)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	settle(t, s, s.Nodes)
	return s
}

// settle waits until the nodes agree on a leader and each answers for all of
// them.
func settle(t *testing.T, s *site.Site, nodes []*site.Node) {
	t.Helper()
	waitLeader(t, nodes, "")
	for _, n := range nodes {
		within(t, patience, n.Name()+" answers for every living node", func(ctx context.Context) error {
			return answersExactly(ctx, s, n, nodes)
		})
	}
}

func answersExactly(ctx context.Context, s *site.Site, n *site.Node, want []*site.Node) error {
	addrs, err := s.Lookup(ctx, n, "apt.service.virtual")
	if err != nil {
		return err
	}
	var expected []string
	for _, w := range want {
		expected = append(expected, w.Addr().String())
	}
	slices.Sort(expected)
	if !slices.Equal(addrs, expected) {
		return fmt.Errorf("%s answers %v, want %v", n.Name(), addrs, expected)
	}
	return nil
}

// waitLeader waits until all nodes name the same leader, and not not.
func waitLeader(t *testing.T, nodes []*site.Node, not string) *site.Node {
	t.Helper()
	var leader string
	within(t, patience, "agree on a leader", func(ctx context.Context) error {
		leader = ""
		for _, n := range nodes {
			l, err := n.Leader(ctx)
			if err != nil {
				return err
			}
			if l == "" || l == not || leader != "" && leader != l {
				return fmt.Errorf("%s names leader %q", n.Name(), l)
			}
			leader = l
		}
		return nil
	})
	for _, n := range nodes {
		if n.Name() == leader {
			return n
		}
	}
	t.Fatalf("the leader %s is none of the living", leader)
	return nil
}

// within polls try and fails the test when it has not succeeded in time. It
// returns how long it took.
func within(t *testing.T, bound time.Duration, what string, try func(context.Context) error) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	start := time.Now()
	var last error // of a try that had its time
	err := site.Poll(ctx, func(ctx context.Context) error {
		err := try(ctx)
		if ctx.Err() == nil {
			last = err
		}
		return err
	})
	if err != nil {
		t.Fatalf("not within %v: %s: %v; before: %v", bound, what, err, last)
	}
	return time.Since(start)
}

// write writes a key through a node until that is acknowledged: it is refused
// while an election goes on, which a machine that stood still may bring about at
// any time.
func write(t *testing.T, n *site.Node, key, value string) {
	t.Helper()
	within(t, patience, "write "+key+" through "+n.Name(), func(ctx context.Context) error { return n.Put(ctx, key, value) })
}

// checkWrites reads the workload's writes back through each node, until that can
// be read, and fails the test for what is not as it was acknowledged.
func checkWrites(t *testing.T, when string, writes *chaos.Writes, nodes []*site.Node) {
	t.Helper()
	for _, n := range nodes {
		var wrong error
		within(t, patience, when+": read back through "+n.Name(), func(ctx context.Context) error {
			if wrong = writes.Check(ctx, n); errors.Is(wrong, chaos.ErrUnread) {
				return wrong
			}
			return nil
		})
		if wrong != nil {
			t.Errorf("%s: %s: %v", when, n.Name(), wrong)
		}
	}
}

func without(nodes []*site.Node, dead ...*site.Node) []*site.Node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *site.Node) bool { return slices.Contains(dead, n) })
}

// anyNode is a chaos.Store over all nodes: a write goes to one after the
// other until one acknowledges it or may have taken it.
type anyNode struct {
	nodes []*site.Node
	pick  func(n int) int
}

func (a anyNode) Put(ctx context.Context, key, value string) error {
	return a.nodes[a.pick(len(a.nodes))].Put(ctx, key, value)
}

func (a anyNode) List(ctx context.Context, prefix string) (map[string]string, error) {
	var errs []error
	for _, n := range a.nodes {
		found, err := n.List(ctx, prefix)
		if err == nil {
			return found, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

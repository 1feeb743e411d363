package chaos_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/chaos/history"
	"holdfast/lab"
	"holdfast/lab/site"
)

// TestStoreIsLinearizableUnderRandomFaults: five agents, each with a disk of
// its own, are killed, stopped, cut off both ways and one way, and their disks
// filled and frozen, while clients read, write, swap and take locks by sessions
// through all of them. STORE_CHAOS says for how long, three minutes unless set;
// CHAOS_SEED repeats the choices.
func TestStoreIsLinearizableUnderRandomFaults(t *testing.T) {
	duration, err := time.ParseDuration(cmp.Or(os.Getenv("STORE_CHAOS"), "3m"))
	if err != nil {
		t.Fatalf("STORE_CHAOS: %v", err)
	}
	lab.Require(t)
	random := chaos.Seeded(t)
	disks := newDisks(t, 5) // before the hosts, so that these are gone first
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: "testdata/five.yaml",
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &storeRun{t: t, site: s, disks: map[*site.Node]*loopDisk{}, random: random, worst: map[string]time.Duration{}, count: map[string]int{}}
	for i, n := range s.Nodes {
		r.disks[n] = disks[i]
		disks[i].insert(n)
		if err := n.StartAgent(); err != nil {
			t.Fatal(err)
		}
	}
	waitLeader(t, s.Nodes, "")
	r.run(duration)
}

// storeRun is one run.
type storeRun struct {
	t      *testing.T
	site   *site.Site
	disks  map[*site.Node]*loopDisk
	random *rand.Rand
	epoch  atomic.Int64 // the keys of each fault are new: short histories are decided
	worst  map[string]time.Duration
	count  map[string]int
}

func (r *storeRun) run(duration time.Duration) {
	t := r.t
	t.Helper()
	record := history.New()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	seed := r.random.Uint64()
	for i := range 6 {
		c := &storeClient{id: i, run: r, record: record, random: rand.New(rand.NewPCG(seed, uint64(i)))}
		group.Go(func() { c.work(ctx) })
	}
	deck := chaos.NewDeck(r.random, "kill", "pause", "cut", "mute", "deaf", "full", "freeze", twoAtOnce)
	for end, round := time.Now().Add(duration), 0; time.Now().Before(end); round++ {
		kind := deck.Deal()
		if kind == twoAtOnce { // of four they would take the majority away
			r.allVote()
		}
		victim := r.site.Nodes[r.random.IntN(len(r.site.Nodes))]
		if r.random.IntN(2) == 0 { // rather the one that matters
			victim = waitLeader(t, r.site.Nodes, "")
		}
		f := r.fault(kind, victim)
		took, err := f.Inflict(ctx, patience, time.Duration(r.random.IntN(1000))*time.Millisecond)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		r.count[kind]++
		r.worst[kind] = max(r.worst[kind], took)
		r.epoch.Add(1)
		before, _ := record.Count()
		within(t, patience, fmt.Sprintf("round %d: after %s: clients work again", round, f.Name), func(context.Context) error {
			if now, _ := record.Count(); now < before+60 {
				return fmt.Errorf("%d operations", now-before)
			}
			return nil
		})
	}
	r.allVote()
	cancel()
	group.Wait()
	known, unknown := record.Count()
	t.Logf("faults %v; slowest effect of each %v", r.count, r.worst)
	t.Logf("%d operations with a known outcome, %d with an unknown one", known, unknown)
	if known < 60*int(r.epoch.Load()) {
		t.Errorf("only %d operations: the test shows nothing", known)
	}
	if err := record.Check(5 * time.Minute); err != nil {
		t.Error(err)
	}
}

const twoAtOnce = "pause and cut"

// allVote waits until all five have a vote, and all five know: a disk that was
// unfit is given some seconds. The leader's word alone is not enough, since it
// tells of a change that a majority may not have yet: while the fifth vote is
// being given, the cluster is still one of four, which bears one loss.
func (r *storeRun) allVote() {
	r.t.Helper()
	within(r.t, patience, "five voters again", func(ctx context.Context) error {
		for _, n := range r.site.Nodes {
			voters, others, err := raftServers(ctx, n)
			if err == nil && len(voters) != 5 {
				err = fmt.Errorf("voters %v, others %v", voters, others)
			}
			if err != nil {
				return fmt.Errorf("as %s knows: %w", n.Name(), err)
			}
		}
		return nil
	})
}

// fault makes one fault of a kind.
func (r *storeRun) fault(kind string, victim *site.Node) chaos.Fault {
	name := kind + " " + victim.Name()
	switch kind {
	case "kill":
		return chaos.Fault{Name: name,
			Begin:  func(context.Context) error { return victim.Kill() },
			Effect: r.replaced(victim),
			End:    func(context.Context) error { return victim.StartAgent() },
		}
	case "pause":
		return chaos.Fault{Name: name,
			Begin:  func(context.Context) error { return victim.Agent().Signal(syscall.SIGSTOP) },
			Effect: both(stopped(victim), r.replaced(victim)),
			End:    func(context.Context) error { return victim.Agent().Signal(syscall.SIGCONT) },
		}
	case "cut":
		return r.loss(name, victim, lab.Both, r.replaced(victim))
	case "mute":
		return r.loss(name, victim, lab.Sent, r.replaced(victim))
	case "deaf": // it goes on leading until its lease ends: nobody answers it
		return r.loss(name, victim, lab.Received, nothing)
	case "full":
		return chaos.Fault{Name: name,
			Begin:  func(context.Context) error { return r.disks[victim].fill() },
			Effect: both(unfit(victim, 1), r.yielded(victim)),
			End:    func(context.Context) error { return r.disks[victim].empty() },
		}
	case "freeze":
		return chaos.Fault{Name: name,
			Begin:  func(context.Context) error { return r.disks[victim].freeze() },
			Effect: both(unfit(victim, 2), r.yielded(victim)),
			End:    func(context.Context) error { return r.disks[victim].thaw() },
		}
	}
	others := without(r.site.Nodes, victim)
	return chaos.Together(r.fault("pause", victim), r.fault("cut", others[r.random.IntN(len(others))]))
}

// loss loses a node's packets one way or both.
func (r *storeRun) loss(name string, victim *site.Node, direction lab.Direction, effect func(context.Context) error) chaos.Fault {
	var f *lab.Fault
	return chaos.Fault{Name: name,
		Begin: func(context.Context) (err error) {
			f, err = victim.Host.Drop(lab.Traffic{Direction: direction})
			return err
		},
		Effect: both(func(context.Context) error {
			lost, err := f.Dropped()
			if err == nil && lost < 20 {
				err = fmt.Errorf("%d packets lost", lost)
			}
			return err
		}, effect),
		End: func(context.Context) error { return f.Heal() },
	}
}

func nothing(context.Context) error { return nil }

func both(a, b func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return errors.Join(a(ctx), b(ctx)) }
}

// replaced: most of the others have a leader that is not the victim.
func (r *storeRun) replaced(victim *site.Node) func(context.Context) error {
	return func(ctx context.Context) error {
		agree, said := 0, ""
		for _, n := range without(r.site.Nodes, victim) {
			leader, err := leaderSoon(ctx, n)
			if err == nil && leader != "" && leader != victim.Name() {
				agree++
			}
			said += fmt.Sprintf(" %s: %q %v;", n.Name(), leader, err)
		}
		if agree < 3 {
			return errors.New("not replaced:" + said)
		}
		return nil
	}
}

// yielded: the victim does not lead, as far as the others know.
func (r *storeRun) yielded(victim *site.Node) func(context.Context) error { return r.replaced(victim) }

func leaderSoon(ctx context.Context, n *site.Node) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	return n.Leader(ctx)
}

// stopped: the kernel says that the process is.
func stopped(n *site.Node) func(context.Context) error {
	return func(context.Context) error {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.Agent().PID()))
		if err != nil {
			return err
		}
		after := string(data[strings.LastIndexByte(string(data), ')')+1:])
		if fields := strings.Fields(after); len(fields) == 0 || fields[0] != "T" {
			return fmt.Errorf("its state is %q", after)
		}
		return nil
	}
}

// unfit: the agent itself found out about its disk.
func unfit(n *site.Node, want int) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		text, err := n.Do(ctx, http.MethodGet, "/v1/agent/metrics?format=prometheus", nil)
		if err == nil && !strings.Contains(string(text), fmt.Sprintf("\nholdfast_raftstore_disk_unfit %d\n", want)) {
			err = fmt.Errorf("its disk is not %d", want)
		}
		return err
	}
}

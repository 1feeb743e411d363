package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/kernel/link"
	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
	"holdfast/lab/wire"
)

const fencedLease = 2 * time.Second // of testdata/fenced.yaml

// fencedBed is three agents with a fenced address, and what watches it: the
// kernels of all nodes, looked at every few milliseconds, and the answers of
// ARP on the wire.
type fencedBed struct {
	*testing.T
	site    *site.Site
	address netip.Addr
	watch   *wire.Watch
	machine *stall.Watch
	handles []*link.Handle

	mu      sync.Mutex
	holder  int // -1: none
	since   time.Time
	changes []holding
	doubled []string
	samples int
}

// holding is that a node has the address, or none, from a time on.
type holding struct {
	node int
	at   time.Time
}

func newFencedBed(t *testing.T) *fencedBed {
	t.Helper()
	s, err := site.New(t.Context(), site.Options{
		Binary: binary, File: "testdata/fenced.yaml",
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	b := &fencedBed{T: t, site: s, machine: watchMachine(t), address: netip.MustParseAddr("10.1.0.100"), holder: -1, since: time.Now()}
	if b.watch, err = wire.Listen(s.Lab, "administration"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.watch.Close() })
	for _, n := range s.Nodes {
		var handle *link.Handle
		if err := n.Host.Do(func() (err error) { handle, err = link.Open(); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = handle.Close() })
		b.handles = append(b.handles, handle)
	}
	sender, err := wire.OpenSender(s.Client, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { b.sample(ctx) })
	running.Go(func() {
		if err := sender.Ask(ctx, s.Client.Addr("administration"), 10*time.Millisecond, b.address); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); _ = sender.Close() })
	return b
}

// has asks the kernel of a node.
func (b *fencedBed) has(node int) bool {
	addrs, err := b.handles[node].Addrs()
	if err != nil {
		b.Error(err)
		return false
	}
	return slices.ContainsFunc(addrs, func(a link.Addr) bool { return a.Prefix.Addr() == b.address })
}

// sample looks at all kernels again and again. Two have the address when one
// has it before and after the other was seen to.
func (b *fencedBed) sample(ctx context.Context) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		holder := -1
		for node := range b.handles {
			if !b.has(node) {
				continue
			}
			if holder >= 0 && b.has(holder) {
				b.mu.Lock()
				b.doubled = append(b.doubled, fmt.Sprintf("%v: on nodes %d and %d", time.Now(), holder+1, node+1))
				b.mu.Unlock()
			}
			holder = node
		}
		b.mu.Lock()
		b.samples++
		if holder != b.holder {
			b.holder, b.since = holder, time.Now()
			b.changes = append(b.changes, holding{holder, b.since})
		}
		b.mu.Unlock()
	}
}

// settled is how long a node has the address before the next fault: longer than
// answersGap, so that who loses it and has it again is not taken for one who had
// it all the time.
const (
	settled    = 300 * time.Millisecond
	answersGap = 100 * time.Millisecond // ends a span of answers; it is asked for every 10 ms
)

// await waits until a node has the address to stay.
func (b *fencedBed) await(bound time.Duration, node int) {
	b.Helper()
	within(b.T, bound, fmt.Sprintf("the address is on node %d", node+1), func(context.Context) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.holder != node || time.Since(b.since) < settled {
			return fmt.Errorf("it is on node %d since %v", b.holder+1, time.Since(b.since).Round(time.Millisecond))
		}
		return nil
	})
}

// vacant is how long nobody had the address since a time, and when the first
// left it.
func (b *fencedBed) vacant(since time.Time) (left, without time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var empty time.Time
	for _, c := range b.changes {
		switch {
		case c.at.Before(since):
		case c.node < 0:
			if left == 0 {
				left = c.at.Sub(since)
			}
			empty = c.at
		case !empty.IsZero():
			without, empty = without+c.at.Sub(empty), time.Time{}
		case left == 0:
			left = c.at.Sub(since) // from one to the next between two looks
		}
	}
	return left, without
}

// check fails the test when two had the address.
func (b *fencedBed) check() {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.doubled {
		b.Errorf("the address was doubled: %s", d)
	}
	answering := wire.Answering(b.watch.Events(), b.address, answersGap)
	for _, o := range wire.Overlaps(answering, 0) {
		b.Errorf("two answered ARP %v", o)
	}
	b.Logf("%d looks at the kernels, %d changes of holder, %d spans of ARP answers", b.samples, len(b.changes), len(answering))
}

// guard is the process that guards an agent.
func (b *fencedBed) guard(n *site.Node) int {
	b.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		text, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if !strings.Contains(string(text), "vip\x00guard\x00") {
			continue
		}
		ours, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.Host.PID()))
		theirs, err2 := os.Readlink("/proc/" + e.Name() + "/ns/net")
		if errors.Join(err, err2) == nil && ours == theirs {
			var pid int
			if _, err := fmt.Sscan(e.Name(), &pid); err == nil {
				return pid
			}
		}
	}
	b.Fatalf("no guard on %s", n.Name())
	return 0
}

func (b *fencedBed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// fencedFault is what happens to the node that holds the address.
type fencedFault struct {
	name  string
	begin func(b *fencedBed, n *site.Node) (end func())
	left  time.Duration // the address has left by then; 0: it is not asked
}

func stop(b *fencedBed, pids ...int) (end func()) {
	for _, pid := range pids {
		b.must(syscall.Kill(pid, syscall.SIGSTOP))
	}
	return func() {
		for _, pid := range pids {
			b.must(syscall.Kill(pid, syscall.SIGCONT))
		}
	}
}

func fencedFaults() []fencedFault {
	others := func(b *fencedBed, n *site.Node) []*lab.Host {
		var hosts []*lab.Host
		for _, o := range without(b.site.Nodes, n) {
			hosts = append(hosts, o.Host)
		}
		return hosts
	}
	restart := func(b *fencedBed, n *site.Node) func() {
		return func() {
			<-n.Agent().Done() // or the next one finds it on its directory
			b.must(n.StartAgent())
		}
	}
	return []fencedFault{
		{"agent stopped", func(b *fencedBed, n *site.Node) func() { return stop(b, n.Agent().PID()) }, fencedLease},
		{"agent and guard stopped", func(b *fencedBed, n *site.Node) func() {
			return stop(b, b.guard(n), n.Agent().PID())
		}, 2 * fencedLease}, // the kernel counts whole seconds
		{"agent killed", func(b *fencedBed, n *site.Node) func() {
			b.must(n.Kill())
			return restart(b, n)
		}, fencedLease},
		{"guard and agent killed", func(b *fencedBed, n *site.Node) func() {
			guard := b.guard(n)
			b.must(syscall.Kill(n.Agent().PID(), syscall.SIGSTOP)) // or it would start another guard
			b.must(syscall.Kill(guard, syscall.SIGKILL))
			b.must(n.Kill())
			return restart(b, n)
		}, 2 * fencedLease},
		{"cut off from the others", func(b *fencedBed, n *site.Node) func() {
			fault, err := b.site.Lab.Partition([]*lab.Host{n.Host}, others(b, n))
			b.must(err)
			return func() { b.must(fault.Heal()) }
		}, fencedLease},
		{"cut off from the store alone", func(b *fencedBed, n *site.Node) func() {
			fault, err := n.Host.Drop(lab.Traffic{Match: "meta l4proto tcp"})
			b.must(err)
			return func() { b.must(fault.Heal()) }
		}, fencedLease},
		{"agent ended", func(b *fencedBed, n *site.Node) func() {
			b.must(n.Agent().Signal(syscall.SIGTERM))
			return restart(b, n)
		}, fencedLease},
		{"address moved", func(b *fencedBed, n *site.Node) func() {
			_, err := n.CLI(b.Context(), "vip", "move", "data")
			b.must(err)
			return func() {
				_, err := n.CLI(b.Context(), "vip", "release", "data")
				b.must(err)
			}
		}, fencedLease},
	}
}

// TestAFencedAddressIsNeverOnTwoHosts: a VIP with `fenced: true` under what
// happens to its holder, real agents with a store of three.
func TestAFencedAddressIsNeverOnTwoHosts(t *testing.T) {
	b := newFencedBed(t)
	b.must(b.site.Start(t.Context()))
	waitLeader(t, b.site.Nodes, "")
	b.await(patience, 0)
	first := b.site.Nodes[0]
	for _, f := range fencedFaults() {
		began := time.Now()
		end := f.begin(b, first)
		within(t, patience, f.name+": another has the address", func(context.Context) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.holder <= 0 {
				return fmt.Errorf("it is on node %d", b.holder+1)
			}
			return nil
		})
		left, vacant := b.vacant(began)
		t.Logf("%s: it left after %v, and nobody had it for %v", f.name, left.Round(time.Millisecond), vacant.Round(time.Millisecond))
		b.machine.Judge(t, f.name+": that the address left", f.left, began, began.Add(left))
		back := time.Now()
		end()
		b.await(patience, 0)
		_, vacant = b.vacant(back)
		t.Logf("%s: over, and back after %v; nobody had it for %v", f.name, (time.Since(back) - settled).Round(time.Millisecond), vacant.Round(time.Millisecond))
	}
	b.check()
}

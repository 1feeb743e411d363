package lb_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/site"
	"holdfast/lab/stall"
	"holdfast/lab/vm"
)

const rebootFile = frontends + `    vrrp: {priority: {f1: 250, f2: 200, f3: 100}}
`

// A node is rebooted under a lock: three whole agents with their store. The one
// that is preferred for the address boots drained, and must not take it, as long
// as another lives.
func TestOneNodeAtATimeIsRebootedAndBootsDrained(t *testing.T) {
	if vm.IsInside() {
		return
	}
	machine := stall.Test(t, "")
	b := newRebootBed(t)
	b.until(t, "f1 holds the address", 0, "f1 ", "vip", "list")
	// The admin's machine holds the lock for as long as its program takes: over
	// the reboot.
	admin := must(b.nodes[2].Host.Start(lab.Cmd{Name: "lock", Args: []string{
		b.Binary(), "lock", "reboot", "--", "/bin/sh", "-c", "touch /run/locked; while test ! -e /run/done; do sleep 0.2; done",
	}}))(t)
	b.within(t, "the admin has the lock", func(ctx context.Context) error {
		_, err := b.nodes[2].Host.Run(ctx, "test", "-e", "/run/locked")
		return err
	})
	b.until(t, "f1 is drained", 0, "leader", "node", "drain", "f1", "--message", "new kernel")
	b.until(t, "f1 is empty", 0, "empty, safe to reboot", "node", "drain", "f1", "--wait")
	b.until(t, "f2 holds the address", 1, "f2 ", "vip", "list")
	if out, err := b.nodes[1].CLI(t.Context(), "lock", "--try", "reboot", "--", "/bin/true"); err == nil {
		t.Errorf("two have the lock: %s", out)
	}
	check(t, b.nodes[0].PowerOff())
	check(t, b.nodes[0].PowerOn(t.Context()))
	b.until(t, "f1 has read the store and stands back", 0, "yielded", "vip", "list")
	b.until(t, "f1 hears who has it", 0, "f2 ", "vip", "list")
	// Longer than it would wait to take it from one that is less preferred. Where the
	// machine stands still for longer than an advert, f1 hears f2 no more for a while.
	machine.Repeat(t, "f1 leaves the address where it is", 3, advert, func() (from, to time.Time, missed error) {
		b.until(t, "f1 hears who has it", 0, "f2 ", "vip", "list")
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for from = time.Now(); missed == nil && time.Since(from) < 4*advert; <-tick.C {
			if out, err := b.nodes[0].CLI(t.Context(), "vip", "list"); err != nil || !strings.Contains(out, "f2 ") {
				missed = fmt.Errorf("who boots drained takes the address: %v\n%s", err, out)
			}
		}
		return from, time.Now(), missed
	})
	if t.Failed() {
		t.FailNow()
	}
	if err := b.nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	b.until(t, "f3 holds the address", 2, "f3 ", "vip", "list")
	b.until(t, "f1 is undrained", 0, "priorities decide again", "node", "undrain", "f1")
	b.until(t, "f1 takes the address back", 0, "f1 ", "vip", "list")
	must(b.nodes[2].Host.Run(t.Context(), "touch", "/run/done"))(t)
	if err := admin.Wait(t.Context()); err != nil {
		t.Errorf("the admin's program ends with %v", err)
	}
	b.until(t, "another has the lock", 0, "", "lock", "--wait", "60s", "reboot", "--", "/bin/true")
}

// rebootBed is three nodes with all of the agent.
type rebootBed struct {
	*site.Site
	nodes []*site.Node
}

func newRebootBed(t *testing.T) *rebootBed {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "cluster.yaml")
	check(t, os.WriteFile(path, []byte(rebootFile), 0o600))
	s := must(site.New(t.Context(), site.Options{
		Binary: must(site.Build(t.Context(), dir))(t), File: path,
		Lab: func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil },
	}))(t)
	b := &rebootBed{s, s.Nodes}
	for _, n := range b.nodes {
		check(t, n.StartAgent())
	}
	return b
}

// within polls for as long as an election and a lock may take on a busy machine.
func (b *rebootBed) within(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := site.Poll(ctx, f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// until repeats a command on a node until it succeeds and says something.
func (b *rebootBed) until(t *testing.T, what string, node int, word string, args ...string) {
	t.Helper()
	b.within(t, what, func(ctx context.Context) error {
		out, err := b.nodes[node].CLI(ctx, args...)
		if err == nil && !strings.Contains(out, word) {
			err = errors.New(out)
		}
		if err != nil {
			return fmt.Errorf("%v: %w", args, err)
		}
		return nil
	})
}

package raftstore

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

func TestRunAgainInTheSameProcess(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	h.leader()
	o.put("k", "v")
	eventually(t, "what a leader writes of itself", func() error {
		snap := o.state.Snapshot()
		if snap.Cluster() == nil || documented(snap, o.id) != "fb1" {
			return errors.New("not there")
		}
		return nil
	})
	before := o.state.Snapshot().Version()
	o.cancel()
	if err := <-o.done; err != nil {
		t.Fatal(err)
	}
	if o.get("k") != "v" {
		t.Fatal("the state is gone while the store does not run")
	}
	if _, err := o.store.Propose(t.Context(), state.KV{Verb: state.Set, Entry: state.Entry{Key: "k"}}); !errors.Is(err, state.ErrNoLeader) {
		t.Fatalf("write to a store that does not run: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	o.cancel = cancel
	go func() { o.done <- o.store.Run(ctx, func() { close(ready) }) }()
	<-ready
	h.leader()
	if got := o.state.Snapshot().Version(); got != before {
		t.Errorf("replaying the log woke readers: version %d became %d", before, got)
	}
	o.put("k", "w")
	if o.get("k") != "w" {
		t.Error("the second Run applies nothing")
	}
}

func TestSecondProcessOnTheSameDataIsRefused(t *testing.T) {
	h := newHosts(t, 1, 1)
	o := h.all["fb1"].start()
	c := o.config()
	c.Listen = freePort(t)
	second, err := New(c, state.New(), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(t.Context(), func() { t.Error("it says that it is ready") })
	if err == nil || !strings.Contains(err.Error(), "log.db: another process has it open") {
		t.Fatalf("Run: %v", err)
	}
}

func TestNothingIsLeftAfterRun(t *testing.T) {
	h := newHostsAlone(t, 3, 3)
	h.startAll()
	h.follower().put("k", "v")
	for _, o := range h.running() {
		o.stop()
	}
	machine, stopped := stall.Test(t, t.TempDir()), time.Now()
	eventually(t, "no goroutine of ours or of raft's", func() error {
		for _, g := range strings.Split(stacks(), "\n\n") {
			if strings.Contains(g, "testing.tRunner") || strings.Contains(g, "testing.(*T).Run") {
				continue
			}
			if strings.Contains(g, "holdfast/raftstore.") || strings.Contains(g, "hashicorp/raft") || strings.Contains(g, "net/http") {
				return errors.New(g)
			}
		}
		return nil
	})
	machine.Judge(t, "the end of the goroutines", 20*time.Second, stopped, time.Now())
}

package raftstore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/state"
)

// What TestLargeStoreStartsSoonAndSnapshotsHoldNobodyUp asks for.
const (
	largeKeys  = 100_000
	largeLog   = 1 << 30 // bytes
	largeValue = 16 << 10
	largeStart = 5 * time.Second
	largeStall = 50 * time.Millisecond
)

// largeStarted is what a start in a process of its own measures.
type largeStarted struct {
	Ready, Served time.Duration
	Entries       int
	RSS, Peak     string // as the kernel says it
	Log           int64  // bytes of the log's file
}

// A store of 100,000 keys of 256 bytes, after a gigabyte of log was written, is
// started in a process of its own; then 16 writers write while snapshots are
// made. It wants a quiet machine and takes a minute or two: HOLDFAST_LARGE=1.
func TestLargeStoreStartsSoonAndSnapshotsHoldNobodyUp(t *testing.T) {
	if dir := os.Getenv("HOLDFAST_LARGE_START"); dir != "" {
		startLarge(t, dir)
		return
	}
	if os.Getenv("HOLDFAST_LARGE") == "" {
		t.Skip("HOLDFAST_LARGE is not set: it writes a gigabyte and measures times")
	}
	h := newHostsAlone(t, 1, 1)
	h.timing = 1
	one := h.all["fb1"].start()
	h.leader()
	start := time.Now()
	spread(t, largeKeys, func(i int) error { return one.set(fmt.Sprintf("large/%d", i), 256) })
	spread(t, largeLog/largeValue, func(i int) error { return one.set(fmt.Sprintf("hot/%d", i%100), largeValue) })
	t.Logf("written in %v", time.Since(start).Round(time.Millisecond))
	measureSnapshots(t, one)
	one.stop()

	started := startAlone(t, one)
	t.Logf("ready after %v, its data served after %v; %d keys, log.db %d MiB, memory %s, at most %s",
		started.Ready, started.Served, started.Entries, started.Log>>20, started.RSS, started.Peak)
	if started.Served > largeStart || started.Entries < largeKeys {
		t.Errorf("%d keys served %v after the start; %d asked for, within %v", started.Entries, started.Served, largeKeys, largeStart)
	}
}

func (o *host) set(key string, size int) error {
	_, err := o.store.Propose(context.Background(), state.KV{Verb: state.Set, Entry: state.Entry{Key: key, Value: make([]byte, size)}})
	return err
}

// spread does things 0 to n-1 by 256 goroutines.
func spread(t *testing.T, n int, do func(i int) error) {
	t.Helper()
	var next atomic.Int64
	var group sync.WaitGroup
	for range 256 {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// measureSnapshots has 16 writers write, for a while without and then with
// snapshots, and compares the slowest writes.
func measureSnapshots(t *testing.T, one *host) {
	t.Helper()
	during := func(do func()) (slowest time.Duration, p50 time.Duration, n int) {
		var took []time.Duration
		var mu sync.Mutex
		var group sync.WaitGroup
		end := make(chan struct{})
		for w := range 16 {
			group.Go(func() {
				for !closed(end) {
					start := time.Now()
					if err := one.set(fmt.Sprintf("small/%d", w), 256); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					took = append(took, time.Since(start))
					mu.Unlock()
				}
			})
		}
		do()
		close(end)
		group.Wait()
		slices.Sort(took)
		return took[len(took)-1], took[len(took)/2], len(took)
	}
	alone, p50, n := during(func() { pause(5 * time.Second) })
	t.Logf("without snapshots: %d writes in 5 s, p50 %v, slowest %v", n, p50, alone)
	for i := range 5 {
		var made time.Duration
		slowest, p50, n := during(func() {
			start := time.Now()
			if err := one.store.engine.Load().raft.Snapshot().Error(); err != nil {
				t.Error(err)
			}
			made = time.Since(start)
		})
		t.Logf("snapshot %d, made in %v: %d writes, p50 %v, slowest %v", i, made.Round(time.Millisecond), n, p50, slowest)
		if slowest > alone+largeStall {
			t.Errorf("a write took %v while a snapshot was made, and %v without: want at most %v more", slowest, alone, largeStall)
		}
	}
}

// startAlone starts a server's data in a process of its own.
func startAlone(t *testing.T, o *host) (started largeStarted) {
	t.Helper()
	where, err := json.Marshal(map[string]string{"dir": o.dir, "id": o.id, "pki": o.pki, "address": o.address.String()})
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "started")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "HOLDFAST_LARGE_START="+string(where), "HOLDFAST_LARGE_OUT="+out)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	data, err := os.ReadFile(out)
	if err == nil {
		err = json.Unmarshal(data, &started)
	}
	if err != nil {
		t.Fatal(err)
	}
	return started
}

// startLarge is the process: it starts, waits until the data is served, and
// tells.
func startLarge(t *testing.T, where string) {
	var at struct{ Dir, ID, PKI, Address string }
	if err := json.Unmarshal([]byte(where), &at); err != nil {
		t.Fatal(err)
	}
	h := newHostsAlone(t, 1, 1)
	h.timing = 1
	o := h.all["fb1"]
	o.dir, o.id, o.pki = at.Dir, at.ID, at.PKI
	if err := o.address.UnmarshalText([]byte(at.Address)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	o.start()
	started := largeStarted{Ready: time.Since(start)}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := o.store.ReadBarrier(ctx); err != nil {
		t.Fatal(err)
	}
	started.Served = time.Since(start)
	all, _ := o.state.Snapshot().Entries(nil, "")
	started.Entries = len(all)
	if st, err := os.Stat(filepath.Join(o.dir, "raft", logName)); err == nil {
		started.Log = st.Size()
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		switch name {
		case "VmRSS":
			started.RSS = strings.TrimSpace(value)
		case "VmHWM":
			started.Peak = strings.TrimSpace(value)
		}
	}
	data, err := json.Marshal(started)
	if err == nil {
		err = os.WriteFile(os.Getenv("HOLDFAST_LARGE_OUT"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

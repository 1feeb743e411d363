package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/state"
	"holdfast/lab/vm"
)

// powerEnv makes this test binary three servers whose data directories are
// below that directory. They print every key whose write was acknowledged; with
// powerReadEnv set they print every key that each of them has, and end.
const (
	powerEnv     = "RAFTSTORE_TEST_POWER"
	powerReadEnv = "RAFTSTORE_TEST_POWER_READ"
)

func powered(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	names := []string{"fb1", "fb2", "fb3"}
	var members []state.Member
	var stores []*Store
	var replicas []*state.Store
	for i, name := range names {
		address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 9, 0, byte(i + 1)}), DefaultPort)
		id := fmt.Sprintf("0000000%d-0000-4000-8000-000000000000", i+1)
		replica := state.New()
		store, err := New(Config{
			Node: name, NodeID: id, DataDir: filepath.Join(dir, name), Listen: address, Cluster: "foobar",
			Servers: names, Timing: 5, Insecure: true, // an emulated processor, shared by three
		}, replica, Deps{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if err != nil {
			return err
		}
		members = append(members, state.Member{Name: name, ID: id, Address: address.Addr(), Liveness: state.Alive, Server: true, RPC: address})
		stores, replicas = append(stores, store), append(replicas, replica)
	}
	failed := make(chan error, len(names))
	for i := range stores {
		replicas[i].SetMembers(members)
		go func() { failed <- stores[i].Run(ctx, func() {}) }()
	}
	work := make(chan error, 1)
	go func() {
		if os.Getenv(powerReadEnv) != "" {
			work <- readAfterPower(ctx, stores, replicas)
			return
		}
		work <- writeUntilPowerIsCut(ctx, stores)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("a server ended: %w", err)
	case err := <-work:
		return err
	}
}

func writeUntilPowerIsCut(ctx context.Context, stores []*Store) error {
	var group sync.WaitGroup
	run := newUUID()
	for w := range 6 {
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := fmt.Sprintf("%s/%d/%d", run, w, n)
				_, err := stores[w%len(stores)].Propose(ctx, state.KV{Verb: state.Set, Entry: state.Entry{Key: key, Value: []byte(key)}})
				if err == nil {
					fmt.Println(key)
				}
			}
		})
	}
	group.Wait()
	return ctx.Err()
}

func readAfterPower(ctx context.Context, stores []*Store, replicas []*state.Store) error {
	for i, store := range stores {
		for {
			err := store.ReadBarrier(ctx)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return err
			}
		}
		entries, _ := replicas[i].Snapshot().Entries(nil, "")
		for _, e := range entries {
			if e.Key != string(e.Value) {
				return fmt.Errorf("%s has %q as %q", store.config.Node, e.Key, e.Value)
			}
			fmt.Println(store.config.Node, e.Key)
		}
	}
	return nil
}

// TestPowerCutsLoseNothingAcknowledged cuts the power of three servers at once
// while they are written to: they are in one virtual machine, whose disk loses
// what was not flushed, and keeps some of that by chance. The power fails when the
// disk is asked for a flush, before it is done: at any other moment there is next
// to nothing that waits for one. A killed process would show nothing, since its
// pages stay in the cache. RAFTSTORE_CUTS says how often (2), CHAOS_SEED repeats
// the choices.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	acked := map[string]bool{}
	vm.PowerCuts{
		Cuts: 2, Variable: "RAFTSTORE_CUTS", Size: 256 << 20,
		Write: func(int) []string { return []string{powerEnv + "=" + vm.PowerDir} },
		Lines: 20, Later: 1500 * time.Millisecond,
		Verify: []string{powerEnv + "=" + vm.PowerDir, powerReadEnv + "=1"},
		Check: func(cut int, keys []string, found string) {
			for _, key := range keys {
				acked[key] = true
			}
			there := map[string]map[string]bool{}
			for line := range strings.Lines(found) {
				server, key, _ := strings.Cut(strings.TrimSpace(line), " ")
				if there[server] == nil {
					there[server] = map[string]bool{}
				}
				there[server][key] = true
			}
			if len(there) != 3 {
				t.Fatalf("cut %d: %d servers answered, want 3", cut, len(there))
			}
			for server, keys := range there {
				for key := range acked {
					if !keys[key] {
						t.Errorf("cut %d: %s: %s was acknowledged and is gone", cut, server, key)
					}
				}
			}
		},
	}.Run(t)
}

// runPowered is what TestMain does in the machine.
func runPowered(w io.Writer) int {
	if err := powered(os.Getenv(powerEnv)); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(w, err)
		return 1
	}
	return 0
}

package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

// acknowledged collects what the machine printed.
type acknowledged struct {
	mu    sync.Mutex
	text  bytes.Buffer
	lines int
	many  chan struct{} // closed after some lines
}

func (p *acknowledged) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text.Write(data)
	before := p.lines
	p.lines += bytes.Count(data, []byte{'\n'})
	if before < 20 && p.lines >= 20 {
		close(p.many)
	}
	return len(data), nil
}

// all are the whole lines.
func (p *acknowledged) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.text.String()
	return strings.Fields(text[:strings.LastIndexByte(text, '\n')+1])
}

// TestPowerCutsLoseNothingAcknowledged cuts the power of three servers at once
// while they are written to: they are in one virtual machine, whose disk loses
// what was not flushed, and keeps some of that by chance. The power fails when the
// disk is asked for a flush, before it is done: at any other moment there is next
// to nothing that waits for one. A killed process would show nothing, since its
// pages stay in the cache. RAFTSTORE_CUTS says how often (2), CHAOS_SEED repeats
// the choices.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	cuts := 2
	if text := os.Getenv("RAFTSTORE_CUTS"); text != "" {
		var err error
		if cuts, err = strconv.Atoi(text); err != nil {
			t.Fatalf("RAFTSTORE_CUTS: %v", err)
		}
	}
	seed := chaosSeed(t)
	dice := rand.New(rand.NewPCG(seed, 0))
	disk := vm.NewTestDisk(t, vm.DiskOptions{Size: 256 << 20, Survivors: rand.New(rand.NewPCG(seed, 1))})
	dir := t.TempDir()
	binary := filepath.Join(dir, "raftstore.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".") // static, and without the race detector
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := vm.NewTest(t, vm.Options{CPUs: 1, Modules: []string{"ext4"}, Disks: []*vm.Disk{disk}, Expose: []string{dir}})
	shell := func(script string) string {
		t.Helper()
		out, err := m.Run(t.Context(), "sh", "-ec", script)
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return out
	}
	shell("mkfs.ext4 -q /dev/vda")
	const mount = "ip link set lo up; echo 0 >/proc/sys/vm/dirty_writeback_centisecs; mkdir -p /srv/data; mount -o commit=300 /dev/vda /srv/data"
	acked := map[string]bool{}
	barren := 0 // cuts that took nothing from the disk
	for cut := range cuts {
		shell(mount)
		out := &acknowledged{many: make(chan struct{})}
		p, err := m.Start(vm.Cmd{Args: []string{binary}, Env: []string{powerEnv + "=/srv/data"}, Stdout: out})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-out.many:
		case <-p.Done():
			t.Fatalf("cut %d: the servers ended: %v", cut, p.Wait(t.Context()))
		}
		timer := time.NewTimer(time.Duration(dice.Int64N(int64(1500 * time.Millisecond))))
		<-timer.C
		before := disk.Stats().Lost
		select {
		case <-disk.CutAtFlush():
		case <-time.After(10 * time.Second): // who never flushes loses what is in the page cache
		}
		if err := m.PowerOff(); err != nil {
			t.Fatal(err)
		}
		if disk.Stats().Lost == before {
			barren++
		}
		for _, key := range out.all() {
			acked[key] = true
		}
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Status 1: it repaired the file system, by its journal.
		shell("e2fsck -fp /dev/vda >/dev/null || test $? = 1; " + mount)
		there := map[string]map[string]bool{}
		for line := range strings.Lines(shell(powerEnv + "=/srv/data " + powerReadEnv + "=1 " + binary)) {
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
		shell("umount /srv/data")
	}
	t.Logf("%d cuts, %d writes acknowledged, %d sectors lost, by %d of the cuts", cuts, len(acked), disk.Stats().Lost, cuts-barren)
	if barren > cuts/2 { // a few sectors may all survive by chance
		t.Errorf("%d of %d cuts took nothing from the disk: they proved nothing", barren, cuts)
	}
}

// runPowered is what TestMain does in the machine.
func runPowered(w io.Writer) int {
	if err := powered(os.Getenv(powerEnv)); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(w, err)
		return 1
	}
	return 0
}

package cas

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/lab/vm"
)

// verifyEnv makes this test binary a process that reads the store of that
// directory anew and prints what is in it, and "bad" before what is damaged.
const verifyEnv = "CAS_TEST_VERIFY"

func verify(dir string) error {
	s, err := Open(dir, Options{Log: quiet()})
	if err != nil {
		return err
	}
	report, err := s.Verify(context.Background(), 0)
	if err != nil {
		return err
	}
	for _, bad := range report.Bad {
		fmt.Println("bad", bad)
	}
	for _, b := range s.Blobs() {
		fmt.Println(b.Sum)
	}
	return s.Close()
}

// printed collects lines; whoever wants the first one waits for it.
type printed struct {
	mu    sync.Mutex
	text  bytes.Buffer
	first chan struct{}
	once  sync.Once
}

func (p *printed) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text.Write(data)
	if bytes.ContainsRune(data, '\n') {
		p.once.Do(func() { close(p.first) })
	}
	return len(data), nil
}

// lines are the whole lines so far.
func (p *printed) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.text.String()
	return strings.Fields(text[:strings.LastIndexByte(text, '\n')+1])
}

// TestAPowerCutLosesNothingThatWasCommitted cuts the power of a machine whose
// disk forgets what was not flushed, and lets some of that survive by chance,
// while blobs are written. CAS_CUTS says how often (2).
func TestAPowerCutLosesNothingThatWasCommitted(t *testing.T) {
	cuts := 2
	if text := os.Getenv("CAS_CUTS"); text != "" {
		var err error
		if cuts, err = strconv.Atoi(text); err != nil {
			t.Fatalf("CAS_CUTS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	disk := vm.NewTestDisk(t, vm.DiskOptions{Size: 64 << 20, Survivors: rand.New(rand.NewPCG(seed, 1))})
	dir := t.TempDir()
	binary := filepath.Join(dir, "cas.test")
	build := exec.Command("go", "test", "-c", "-o", binary, ".") // static, and without the race detector
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := vm.NewTest(t, vm.Options{CPUs: 1, Modules: []string{"ext4"}, Disks: []*vm.Disk{disk}, Expose: []string{dir}})
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	shell := func(script string) string {
		t.Helper()
		out, err := m.Run(t.Context(), "sh", "-ec", script)
		must(script, err)
		return out
	}
	shell("mkfs.ext4 -q /dev/vda")
	const mount = "echo 0 >/proc/sys/vm/dirty_writeback_centisecs; mkdir -p /srv/data; mount -o commit=300 /dev/vda /srv/data"
	committed := map[string]bool{}
	for cut := range cuts {
		shell(mount)
		out := &printed{first: make(chan struct{})}
		p, err := m.Start(vm.Cmd{Args: []string{binary}, Env: []string{writeEnv + "=/srv/data/store"}, Stdout: out})
		must("start", err)
		select {
		case <-out.first:
		case <-p.Done():
			t.Fatalf("it ended before its first blob: %v", p.Wait(t.Context()))
		}
		timer := time.NewTimer(time.Duration(dice.Int64N(int64(2 * time.Second))))
		<-timer.C
		must("power off", m.PowerOff())
		for _, sum := range out.lines() {
			committed[sum] = true
		}
		must("power on", m.PowerOn(t.Context()))
		// Status 1: it repaired the file system, by its journal.
		shell("e2fsck -fp /dev/vda >/dev/null || test $? = 1; " + mount)
		there := map[string]bool{}
		for line := range strings.Lines(shell(verifyEnv + "=/srv/data/store " + binary)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "bad ") {
				t.Errorf("cut %d: a blob is damaged under its name: %s", cut, line)
			}
			there[line] = true
		}
		for sum := range committed {
			if !there[sum] {
				t.Errorf("cut %d: %s was committed and is gone", cut, sum)
			}
		}
		shell("umount /srv/data")
	}
	t.Logf("%d cuts, %d blobs committed, %d sectors lost", cuts, len(committed), disk.Stats().Lost)
	if len(committed) < cuts {
		t.Error("nothing was under way: the cuts proved nothing")
	}
}

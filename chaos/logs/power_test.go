package logs

import (
	"bytes"
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

func TestMain(m *testing.M) {
	for env, f := range map[string]func(string) error{loadEnv: load, verifyEnv: verify, pairEnv: pairNode, pairClientsEnv: pairClients} {
		if what := os.Getenv(env); what != "" {
			if err := f(what); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// printed collects lines; begun is closed once enough of them came.
type printed struct {
	mu    sync.Mutex
	text  bytes.Buffer
	begun chan struct{}
	once  sync.Once
}

// enough is how many acknowledgements there are before a cut.
const enough = 20

func (p *printed) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text.Write(data)
	if bytes.Count(p.text.Bytes(), []byte("\n")) >= enough {
		p.once.Do(func() { close(p.begun) })
	}
	return len(data), nil
}

// acknowledged is how many lines each client was told are stored, of what it
// printed in whole lines.
func (p *printed) acknowledged(t *testing.T) (counts [clients]int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.text.String()
	for line := range strings.Lines(text[:strings.LastIndexByte(text, '\n')+1]) {
		var client, count int
		if _, err := fmt.Sscanf(line, "acknowledged %d %d\n", &client, &count); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		counts[client] = count
	}
	return counts
}

// TestAPowerCutLosesNoLineThatWasAcknowledged cuts the power of a machine whose
// disk forgets what was not flushed, and lets some of that survive by chance,
// while clients send by RELP. LOGS_CUTS says how often (2).
func TestAPowerCutLosesNoLineThatWasAcknowledged(t *testing.T) {
	cuts := 2
	if text := os.Getenv("LOGS_CUTS"); text != "" {
		var err error
		if cuts, err = strconv.Atoi(text); err != nil {
			t.Fatalf("LOGS_CUTS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	disk := vm.NewTestDisk(t, vm.DiskOptions{Size: 256 << 20, Survivors: rand.New(rand.NewPCG(seed, 1))})
	dir := t.TempDir()
	binary := filepath.Join(dir, "logs.test")
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
	const mount = "echo 0 >/proc/sys/vm/dirty_writeback_centisecs; ip link set lo up; mkdir -p /srv/data; mount -o commit=300 /dev/vda /srv/data"
	var acknowledged [][clients]int
	for cut := range cuts {
		shell(mount)
		out := &printed{begun: make(chan struct{})}
		p, err := m.Start(vm.Cmd{Args: []string{binary}, Env: []string{fmt.Sprintf("%s=/srv/data %d", loadEnv, cut)}, Stdout: out})
		must("start", err)
		select {
		case <-out.begun:
		case <-p.Done():
			t.Fatalf("it ended before it was under load: %v", p.Wait(t.Context()))
		}
		<-time.After(time.Duration(dice.Int64N(int64(2 * time.Second)))) // when the power goes
		must("power off", m.PowerOff())
		acknowledged = append(acknowledged, out.acknowledged(t))
		must("power on", m.PowerOn(t.Context()))
		// Status 1: it repaired the file system, by its journal.
		shell("e2fsck -fp /dev/vda >/dev/null || test $? = 1; " + mount)
		there := shell(verifyEnv + "=/srv/data " + binary)
		for round, counts := range acknowledged {
			for client, count := range counts {
				name := fmt.Sprintf("client%d round %d: ", client, round)
				_, rest, _ := strings.Cut(there, name)
				var found int
				if _, err := fmt.Sscanf(rest, "%d in order\n", &found); err != nil || found < count {
					line, _, _ := strings.Cut(rest, "\n")
					t.Errorf("cut %d: of round %d, client %d was told of %d lines; there: %q", cut, round, client, count, line)
				}
			}
		}
		shell("umount /srv/data")
	}
	sum := 0
	for _, counts := range acknowledged {
		for _, n := range counts {
			sum += n
		}
	}
	t.Logf("%d cuts, %d lines acknowledged, %d sectors lost", cuts, sum, disk.Stats().Lost)
}

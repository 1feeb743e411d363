package vm

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// PowerDir is where the disk of [PowerCuts] is mounted, in the machine.
const PowerDir = "/srv/data"

// Bounds of a test that cuts the power, on a machine that has other work beside the
// emulation.
const (
	powerWithin = 4 * time.Minute  // for a program to print, or to look
	flushWithin = 30 * time.Second // for a flush: who never flushes loses what is in the page cache
)

// powerMount mounts the disk so that nothing is written back by its age: what is
// on it was flushed, or wanted out of a cache that was full.
const powerMount = "echo 0 >/proc/sys/vm/dirty_writeback_centisecs; mkdir -p " + PowerDir + "; mount -o commit=300 /dev/vda " + PowerDir

// PowerCuts is a test that lets a program write into [PowerDir], in a machine
// with an ext4 on a disk that loses what was not flushed and keeps some of that
// by chance, cuts the power in the middle of a flush ([Disk.CutAtFlush]), and
// looks what is there when the machine is on again; then once more, on the same
// disk. The program is the package's test binary, whose TestMain does in the
// machine what the environment says. CHAOS_SEED repeats the choices.
type PowerCuts struct {
	// Cuts is how often, at least 1. Variable names the environment variable
	// that says another number; "": none does.
	Cuts     int
	Variable string

	// Size of the disk in bytes.
	Size int64

	// Write is the environment (NAME=value) of the program that writes, without
	// an end, before the cut of that number, from 0 on. It prints a line, in one
	// piece, for each thing that is safe now.
	Write func(cut int) []string

	// Lines is how many of them there are, at least, before the power may go; it
	// goes at a flush after that and a random time, Later at most.
	Lines int
	Later time.Duration

	// Verify is the environment of the program that reads, after the cut, what
	// is there, and prints it.
	Verify []string

	// Check compares what the program that writes had printed, of this cut and
	// in whole lines, with what is there.
	Check func(cut int, safe []string, there string)
}

// Run runs the test. It fails, too, when most of the cuts took nothing from the
// disk: they proved nothing.
func (p PowerCuts) Run(t *testing.T) {
	t.Helper()
	cuts, seed := p.Cuts, uint64(time.Now().UnixNano())
	for name, n := range map[string]any{p.Variable: &cuts, "CHAOS_SEED": &seed} {
		if given := os.Getenv(name); given != "" {
			if _, err := fmt.Sscan(given, n); err != nil {
				t.Fatalf("%s=%q: %v", name, given, err)
			}
		}
	}
	if cuts < 1 {
		t.Fatalf("%d cuts (%s) prove nothing: want at least 1", cuts, p.Variable)
	}
	t.Logf("CHAOS_SEED=%d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	binary := TestBinary(t)
	disk := NewTestDisk(t, DiskOptions{Size: p.Size, Survivors: rand.New(rand.NewPCG(seed, 1))})
	m := powered{t, NewTest(t, Options{CPUs: 1, Modules: []string{"ext4"}, Disks: []*Disk{disk}, Expose: []string{binary}})}
	m.shell("ip link set lo up; mkfs.ext4 -q /dev/vda; " + powerMount)
	barren, lines := 0, 0 // cuts that took nothing from the disk; lines in all
	for cut := range cuts {
		out := &printed{enough: make(chan struct{}), least: p.Lines}
		writer, err := m.Start(Cmd{Args: []string{binary}, Env: p.Write(cut), Stdout: out})
		m.must("start", err)
		select {
		case <-out.enough:
		case <-writer.Done():
			t.Fatalf("cut %d: the program ended before it had printed %d lines: %v", cut, p.Lines, writer.Wait(t.Context()))
		case <-time.After(powerWithin):
			t.Fatalf("cut %d: the program has not printed %d lines within %v", cut, p.Lines, powerWithin)
		}
		<-time.After(time.Duration(dice.Int64N(int64(p.Later) + 1))) // when the power goes
		before := disk.Stats().Lost
		select {
		case <-disk.CutAtFlush():
		case <-time.After(flushWithin):
		}
		m.must("power off", m.PowerOff())
		if disk.Stats().Lost == before {
			barren++
		}
		m.must("power on", m.PowerOn(t.Context()))
		// Status 1: it repaired the file system, by its journal.
		m.shell("ip link set lo up; e2fsck -fp /dev/vda >/dev/null || test $? = 1; " + powerMount)
		ctx, cancel := context.WithTimeout(t.Context(), powerWithin)
		there, err := m.RunCmd(ctx, Cmd{Args: []string{binary}, Env: p.Verify})
		cancel()
		m.must(fmt.Sprintf("cut %d: look what is there", cut), err)
		safe := out.lines()
		lines += len(safe)
		p.Check(cut, safe, there)
	}
	t.Logf("%d cuts, %d lines printed, %d sectors lost, by %d of the cuts", cuts, lines, disk.Stats().Lost, cuts-barren)
	if barren > cuts/2 { // a few sectors may all survive by chance
		t.Errorf("%d of %d cuts took nothing from the disk: they proved nothing", barren, cuts)
	}
}

// powered is a machine of one test.
type powered struct {
	t *testing.T
	*Machine
}

func (m powered) must(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

func (m powered) shell(script string) {
	m.t.Helper()
	_, err := m.Run(m.t.Context(), "sh", "-ec", script)
	m.must(script, err)
}

// printed is what a program printed; enough is closed once that are the least
// lines that are wanted.
type printed struct {
	least  int
	enough chan struct{}

	mu   sync.Mutex
	text bytes.Buffer
	seen int
}

func (p *printed) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.seen
	p.seen += bytes.Count(data, []byte{'\n'})
	if before < p.least && p.seen >= p.least {
		close(p.enough)
	}
	return p.text.Write(data)
}

// lines are the whole lines: the power may go in the middle of one.
func (p *printed) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := strings.Split(p.text.String(), "\n")
	return all[:len(all)-1]
}

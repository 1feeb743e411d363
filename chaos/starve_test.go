package chaos_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/chaos"
	"holdfast/lab"
	"holdfast/lab/site"
)

// Every processor is busy with something else, and the store is written to: an
// election has a stall of at least 150 ms before it, that a server recorded of
// itself. STARVE says for how long; without it the test is left out, since it
// takes the machine from all others.
func TestNoElectionWithoutAStall(t *testing.T) {
	text := os.Getenv("STARVE")
	if text == "" {
		t.Skip("takes the whole machine: make starve-long")
	}
	duration, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("STARVE: %v", err)
	}
	lab.Require(t)
	s := electedSite(t, "testdata/three.yaml")
	busy := busyEach * runtime.NumCPU()
	beBusy(t, busy)
	begun, before := time.Now(), scheduled(t, s.Nodes)
	writes := &chaos.Writes{Store: anyNode{s.Nodes, func(n int) int { return int(time.Now().UnixNano()/1e6) % n }}, Prefix: "starved/", Writers: 2, Timeout: 30 * time.Second}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	writes.Run(ctx)
	starved := scheduled(t, s.Nodes).since(before)
	elections, stalls := read(t, s.Nodes, begun)
	summary := writes.Summary()
	longest := recorded{}
	for _, st := range stalls {
		if st.lasted > longest.lasted {
			longest = st
		}
	}
	t.Logf("%v with %d busy processes, %v: %d elections, %d stalls of 150 ms and more, the longest %v (%s of %s); %d writes acknowledged, %d of unknown outcome, longest pause %v",
		duration, busy, starved, len(elections), len(stalls), longest.lasted, longest.by, longest.node, summary.Acked, summary.Unknown, summary.LongestGap.Round(time.Millisecond))
	if starved.idle > 0.01 || starved.waited < starved.ran {
		t.Errorf("%v: nothing was starved", starved)
	}
	if summary.Acked < 100 {
		t.Errorf("only %d writes: the test shows nothing", summary.Acked)
	}
	for _, e := range elections {
		if err := explained(e, stalls); err != nil {
			t.Error(err)
		}
	}
}

// busyEach is how many processes each processor is busy with.
const busyEach = 8

// beBusy starts processes that do nothing as fast as they can, until the test's
// end.
func beBusy(t *testing.T, count int) {
	t.Helper()
	for range count {
		cmd := exec.Command("/bin/sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
}

// scheduling is what the agents got of the processors.
type scheduling struct {
	ran, waited time.Duration // all agents' threads had a processor, and could have run but had none
	idle        float64       // share of all processors' time, or sum in ticks before since
	ticks       float64
}

func (s scheduling) String() string {
	return fmt.Sprintf("processors %.2f %% idle, the agents ran %v and waited %v for a processor", 100*s.idle, s.ran.Round(time.Millisecond), s.waited.Round(time.Millisecond))
}

func (s scheduling) since(b scheduling) scheduling {
	return scheduling{s.ran - b.ran, s.waited - b.waited, (s.idle - b.idle) / (s.ticks - b.ticks), 0}
}

// scheduled reads the kernel's counters: /proc/PID/task/TID/schedstat and
// /proc/stat.
func scheduled(t *testing.T, nodes []*site.Node) (s scheduling) {
	t.Helper()
	for _, n := range nodes {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", n.Agent().PID()))
		if err != nil || len(files) == 0 {
			t.Fatalf("the threads of %s: %d, %v", n.Name(), len(files), err)
		}
		for _, file := range files {
			var ran, waited time.Duration
			text, err := os.ReadFile(file)
			if err == nil {
				_, err = fmt.Sscan(string(text), &ran, &waited)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s: %v", file, err)
			}
			s.ran, s.waited = s.ran+ran, s.waited+waited
		}
	}
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:9] { // guests are in the first already
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil {
			t.Fatal(err)
		}
		s.ticks += ticks
		if i == 3 || i == 4 { // idle, and waiting for a disk
			s.idle += ticks
		}
	}
	return s
}

// election is a term that a server first spoke of at a time.
type election struct {
	term uint64
	at   time.Time
}

// recorded is a stall as a server recorded it of itself.
type recorded struct {
	node, by string
	begun    time.Time
	lasted   time.Duration
}

var (
	electedLine = regexp.MustCompile(`(?m)^time=(\S+) .*msg="(?:leader elected|no leader)".* term=(\d+)`)
	stallLine   = regexp.MustCompile(`(?m)^time=\S+ .*msg="this server was held up[^"]*".* by=(\S+) lasted=(\S+) since=(\S+)`)
)

// read gives the elections since a time, of each term the first word of it, and
// the stalls, out of the agents' logs.
func read(t *testing.T, nodes []*site.Node, since time.Time) (elections []election, stalls []recorded) {
	t.Helper()
	first := map[uint64]time.Time{}
	for _, n := range nodes {
		log := n.Log()
		for _, m := range electedLine.FindAllStringSubmatch(log, -1) {
			at, err := time.Parse(time.RFC3339Nano, m[1])
			term, failed := strconv.ParseUint(m[2], 10, 64)
			if err = errors.Join(err, failed); err != nil {
				t.Fatal(err)
			}
			if old, ok := first[term]; !ok || at.Before(old) {
				first[term] = at
			}
		}
		for _, m := range stallLine.FindAllStringSubmatch(log, -1) {
			lasted, err := time.ParseDuration(m[2])
			begun, failed := time.Parse(time.RFC3339Nano, m[3])
			if err = errors.Join(err, failed); err != nil {
				t.Fatal(err)
			}
			stalls = append(stalls, recorded{n.Name(), m[1], begun, lasted})
		}
	}
	for term, at := range first {
		if at.After(since) {
			elections = append(elections, election{term, at})
		}
	}
	slices.SortFunc(elections, func(a, b election) int { return cmp.Compare(a.term, b.term) })
	return elections, stalls
}

// electionMost is how long after a stall an election that it caused may be
// heard of: the longest timeout of 600 ms, a vote or two that were split, and
// the telling.
const electionMost = 3 * time.Second

// explained: a server recorded a stall of 150 ms that ended not long before the
// election, or lasted then.
func explained(e election, stalls []recorded) error {
	for _, st := range stalls {
		if st.lasted >= 150*time.Millisecond && st.begun.Before(e.at) && st.begun.Add(st.lasted).After(e.at.Add(-electionMost)) {
			return nil
		}
	}
	return fmt.Errorf("term %d at %s: no server recorded a stall of 150 ms in the %v before", e.term, e.at.Format(time.RFC3339Nano), electionMost)
}

package chaos_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
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
	busy := beBusy(t, 2*runtime.NumCPU())
	begun := time.Now()
	writes := &chaos.Writes{Store: anyNode{s.Nodes, func(n int) int { return int(time.Now().UnixNano()/1e6) % n }}, Prefix: "starved/", Writers: 2, Timeout: 30 * time.Second}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	writes.Run(ctx)
	used := busy()
	elections, stalls := read(t, s.Nodes, begun)
	summary := writes.Summary()
	longest := stall{}
	for _, st := range stalls {
		if st.lasted > longest.lasted {
			longest = st
		}
	}
	t.Logf("%v with %d busy processes (%.0f %% of all processors theirs): %d elections, %d stalls of 150 ms and more, the longest %v (%s of %s); %d writes acknowledged, %d of unknown outcome, longest pause %v",
		duration, 2*runtime.NumCPU(), 100*used, len(elections), len(stalls), longest.lasted, longest.by, longest.node, summary.Acked, summary.Unknown, summary.LongestGap.Round(time.Millisecond))
	if used < 0.5 {
		t.Errorf("the busy processes got %.0f %% of the processors: nothing was starved", 100*used)
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

// beBusy starts processes that do nothing as fast as they can. The function that
// it returns ends them and gives their share of all processors.
func beBusy(t *testing.T, count int) (end func() float64) {
	t.Helper()
	begun := time.Now()
	var all []*exec.Cmd
	for range count {
		cmd := exec.Command("/bin/sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	stop := func() (used time.Duration) {
		for _, cmd := range all {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			used += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		}
		all = nil
		return used
	}
	t.Cleanup(func() { stop() })
	return func() float64 {
		lasted := time.Since(begun)
		return float64(stop()) / float64(lasted) / float64(runtime.NumCPU())
	}
}

// election is a term that a server first spoke of at a time.
type election struct {
	term uint64
	at   time.Time
}

// stall is what a server recorded of itself.
type stall struct {
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
func read(t *testing.T, nodes []*site.Node, since time.Time) (elections []election, stalls []stall) {
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
			stalls = append(stalls, stall{n.Name(), m[1], begun, lasted})
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
func explained(e election, stalls []stall) error {
	for _, st := range stalls {
		if st.lasted >= 150*time.Millisecond && st.begun.Before(e.at) && st.begun.Add(st.lasted).After(e.at.Add(-electionMost)) {
			return nil
		}
	}
	return fmt.Errorf("term %d at %s: no server recorded a stall of 150 ms in the %v before", e.term, e.at.Format(time.RFC3339Nano), electionMost)
}

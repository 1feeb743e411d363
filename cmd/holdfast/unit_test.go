package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/internal/state"
)

func TestAgo(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s":     -time.Second,
		"4.2s":   4200 * time.Millisecond,
		"10s":    10 * time.Second,
		"2m0s":   2 * time.Minute,
		"3m20s":  200 * time.Second,
		"1h0m":   time.Hour,
		"25h5m":  25*time.Hour + 5*time.Minute + 40*time.Second,
		"2d":     48 * time.Hour,
		"59m59s": time.Hour - time.Second,
	} {
		if got := ago(d); got != want {
			t.Errorf("%v is printed %q, want %q", d, got, want)
		}
	}
}

func TestOutputOfStrangersDoesNotSteerTheTerminal(t *testing.T) {
	var out strings.Builder
	con := &console{out: &out}
	if err := con.table([]string{"OUTPUT"}, [][]string{{"a\x1b[2Jb\tc"}, {oneLine("x\x07\n y\u202ez", 10)}}); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\x07\u202e\t") || !strings.Contains(out.String(), "x\uFFFD y\uFFFDz") {
		t.Errorf("printed %q", out.String())
	}
}

func TestServicesFoldNodesThatFailAlike(t *testing.T) {
	now := time.Unix(1000, 0)
	since := &api.Since{Time: now.Add(-5 * time.Second), Exact: true}
	good, bad := answering([]api.InstanceStatus{
		{Node: "fb1", Status: state.Passing},
		{Node: "fb2", Status: state.Critical, Since: since},
		{Node: "fb3", Status: state.Critical, Since: since},
		{Node: "fb4", Status: state.Warning, Since: since},
	}, now)
	if good != "fb1" || bad != "fb4 (warning, 5s), fb[2-3] (critical, 5s)" {
		t.Errorf("answered by %q, not by %q", good, bad)
	}
}

func TestAnAddressWithoutItsPortIsGivenTheServicesOwn(t *testing.T) {
	for text, want := range map[string]string{"10.1.0.1": "such as 10.1.0.1:53", "fd00::1": "such as [fd00::1]:53", "lo": "such as 127.0.0.1:53"} {
		if _, err := addrPorts([]string{text}, 53); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// keep claims a directory and says whose it is.
func keep(t *testing.T, dir, node string) *claimed {
	t.Helper()
	c, err := claim(dir, node)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.keep(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClaimRefusesTheDataOfAnotherNodeAndOfALivingAgent(t *testing.T) {
	dir := t.TempDir()
	first := keep(t, dir, "fb1")
	if _, err := claim(dir, "fb1"); err == nil || !strings.Contains(err.Error(), "another agent runs") {
		t.Errorf("two agents have one data directory: %v", err)
	}
	first.release()
	if _, err := claim(dir, "fb2"); err == nil || !strings.Contains(err.Error(), `belongs to node "fb1" and this is fb2`) {
		t.Errorf("fb2 was given fb1's data: %v", err)
	}
	// A crash cut the first claim short.
	if err := os.WriteFile(filepath.Join(dir, "node-name"), []byte("a-very-long-na"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		keep(t, dir, "fb2").release()
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "node-name")); string(text) != "fb2\n" {
		t.Errorf("the claim holds %q", text)
	}
}

func TestAFailedFirstStartLeavesTheDataDirectoryToAnyNode(t *testing.T) {
	n := &node{dir: t.TempDir()}
	file := filepath.Join(n.dir, "cluster.yaml")
	text := "schema: 1\ncluster: c\ndomain: c.example.com\nnetworks: {main: {prefix: 127.9.9.0/24}}\n" +
		"roles: {service: {voters: 1, run: [dns]}, frontend: {}, compute: {agent: false}}\n" +
		"nodes: {fbservice1: {role: service, addresses: {main: 127.9.9.1}}, fbfront1: {role: frontend, addresses: {main: 127.9.9.2}}, fbcn1: {role: compute, addresses: {main: 127.9.9.3}}}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(n.dir, "data")
	start := func(node string, more ...string) []string {
		return append([]string{"agent", "--config", file, "--node", node, "--data-dir", data, "--run-dir", filepath.Join(n.dir, "run")}, more...)
	}
	n.expect(t, exitUsage, "certificate", start("fbservice1", "--pki", filepath.Join(n.dir, "none"))...)
	n.expect(t, exitUsage, "certificate", start("fbfront1", "--pki", filepath.Join(n.dir, "none"))...)
	n.expect(t, exitUsage, "runs no agent", start("fbcn1", "--insecure")...)
	keep(t, data, "fbservice2").release() // neither of them has it
}

func TestAServerMayNotLeaveWhenTheOthersCouldNotGoOn(t *testing.T) {
	voter := func(id string) state.RaftServer { return state.RaftServer{ID: id, Name: "fb" + id, Voter: true} }
	alive := func(ids ...string) (members []state.Member) {
		for _, id := range ids {
			members = append(members, state.Member{ID: id, Name: "fb" + id, Liveness: state.Alive})
		}
		return append(members, state.Member{ID: "dead", Liveness: state.Failed})
	}
	three := []state.RaftServer{voter("1"), voter("2"), voter("3")}
	for name, test := range map[string]struct {
		servers []state.RaftServer
		members []state.Member
		refused bool
	}{
		"alone":                    {three[:1], alive("1"), false},
		"two":                      {three[:2], alive("1", "2"), false},
		"two, the other is dead":   {three[:2], alive("1"), true},
		"three":                    {three, alive("1", "2", "3"), false},
		"three, one is dead":       {three, alive("1", "2"), true},
		"the dead one has no vote": {append(three[:2:2], state.RaftServer{ID: "dead"}), alive("1", "2"), false},
	} {
		err := mayLeave("1", test.servers, test.members)
		if errors.Is(err, state.ErrInvalid) != test.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheEmbeddedDefaultSurvivesAStartThatWasCutShort(t *testing.T) {
	c := agentCmd{ClusterFile: defaultClusterFile, DataDir: t.TempDir()}
	base := &foundation{log: slog.New(slog.DiscardHandler), source: cluster.NewSource(cluster.Single("alone", netip.MustParseAddr("127.0.0.1")))}
	self, err := base.source.Current().Self("alone")
	if err != nil {
		t.Fatal(err)
	}
	base.self = *self
	if _, err := c.openTrust(base); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(c.DataDir, "pki", "node.crt")); err != nil { // it comes last
		t.Fatal(err)
	}
	if _, err := c.openTrust(base); err != nil {
		t.Error(err)
	}
}

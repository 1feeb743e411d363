package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/internal/state"
)

// joinSite is a server that lets nodes in, and a second node of its cluster
// file that is bare.
type joinSite struct {
	*node
	second string // address of fbservice2
}

func newJoinSite(t *testing.T) joinSite {
	t.Helper()
	n := newNode(t, "")
	s := joinSite{n, strings.TrimSuffix(n.addr, "1") + "2"}
	t.Setenv("HOLDFAST_JOIN_AUTHORITY", filepath.Join(n.dir, "ca"))
	n.start(t, "fbservice1")
	n.until(t, "a leader", func() bool {
		out, _ := n.run(t, "", "status")
		return strings.Contains(out, "Leader: fbservice1")
	})
	// The cluster has one server, and grows.
	n.edit(t, "nodes: {", "nodes: {fbservice2: {role: service, addresses: {main: "+s.second+"}}, fbservice3: {role: other, addresses: {main: "+
		strings.TrimSuffix(n.addr, "1")+"3}}, ")
	n.edit(t, "roles: {", "roles: {other: {agent: false}, ")
	n.expect(t, exitOK, "", "config", "reload")
	return s
}

// token makes a join token.
func (s joinSite) token(t *testing.T, args ...string) api.MadeJoinToken {
	t.Helper()
	out := s.expect(t, exitOK, "", append([]string{"join-token", "create", "--json"}, args...)...)
	var made api.MadeJoinToken
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return made
}

// join is `holdfast join` as fbservice2, into an empty directory unless said.
func (s joinSite) join(t *testing.T, dir, token string, more ...string) (string, int) {
	t.Helper()
	args := append([]string{"join", s.addr, "--token", token, "--node", "fbservice2", "--bind", s.second, "--wait", "2m",
		"--pki", filepath.Join(dir, "pki"), "--config", filepath.Join(dir, "cluster.yaml")}, more...)
	return s.run(t, "", args...)
}

func TestABareNodeJoinsByItsToken(t *testing.T) {
	s := newJoinSite(t)
	bare := t.TempDir()
	made := s.token(t, "--nodes", "fbservice2")
	if out, status := s.join(t, bare, made.Token); status != exitOK || !strings.Contains(out, "has its certificate and its cluster file") {
		t.Fatalf("join: %d: %s", status, out)
	}
	want, _ := os.ReadFile(filepath.Join(s.dir, "cluster.yaml"))
	if got, err := os.ReadFile(filepath.Join(bare, "cluster.yaml")); err != nil || string(got) != string(want) {
		t.Errorf("the cluster file is another, or missing: %v", err)
	}
	for _, secret := range []string{"node.key", "gossip.key"} {
		if info, err := os.Stat(filepath.Join(bare, "pki", secret)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, info, err)
		}
	}
	// What it got is enough to take part.
	ctx, stop := context.WithCancel(t.Context())
	said, done := &logBuffer{}, make(chan int, 1)
	if err := os.Unsetenv("HOLDFAST_JOIN_AUTHORITY"); err != nil { // newJoinSite restores it
		t.Fatal(err)
	}
	go func() {
		done <- execute(ctx, []string{
			"agent", "--config", filepath.Join(bare, "cluster.yaml"), "--node", "fbservice2", "--data-dir", filepath.Join(bare, "data"),
			"--run-dir", filepath.Join(bare, "run"), "--pki", filepath.Join(bare, "pki"),
			"--dns-listen", s.second + ":5353", "--ntp-listen", s.second + ":1123", "--http-listen", s.second + ":8500",
		}, strings.NewReader(""), said, said)
	}()
	defer func() {
		stop()
		<-done
		if t.Failed() {
			t.Logf("the second node's log:\n%s", said)
		}
	}()
	s.until(t, "both see each other", func() bool {
		out, _ := s.run(t, "", "members")
		return strings.Count(out, "alive") == 2
	})
	// At the next boot of a node that has a disk nothing is asked for.
	if out, status := s.join(t, bare, made.Token); status != exitOK || !strings.Contains(out, "already") {
		t.Errorf("join of a node that has joined: %d: %s", status, out)
	}
}

func TestJoinTokensAreForAFewAndForATime(t *testing.T) {
	s := newJoinSite(t)
	refused := func(what, token, want string, more ...string) {
		t.Helper()
		dir := t.TempDir()
		out, status := s.join(t, dir, token, more...)
		if status == exitOK || !strings.Contains(out, want) {
			t.Errorf("%s: status %d, want a refusal with %q: %s", what, status, want, out)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 0 {
			t.Errorf("%s: left behind: %v", what, entries)
		}
	}
	const unknown = "the token is unknown, used up or over"
	once := s.token(t)
	if out, status := s.join(t, t.TempDir(), once.Token); status != exitOK {
		t.Fatalf("join: %d: %s", status, out)
	}
	refused("a second use", once.Token, unknown)

	many := s.token(t, "--uses", "any", "--nodes", "fbservice[1-2]")
	for range 3 { // a diskless node, at each boot
		if out, status := s.join(t, t.TempDir(), many.Token); status != exitOK {
			t.Fatalf("join at a boot: %d: %s", status, out)
		}
	}
	refused("from another's address", many.Token, "is no address of node fbservice2", "--bind", s.addr)
	refused("for another node", s.token(t, "--nodes", "fbservice1").Token, "is not for node")
	refused("as a node without an agent", s.token(t).Token, "runs no agent", "--node", "fbservice3")
	refused("as a stranger", s.token(t).Token, `no node "stranger"`, "--node", "stranger")

	short := s.token(t, "--lifetime", "1s")
	s.until(t, "its end", func() bool { return time.Now().After(short.Expires) })
	refused("when its time is over", short.Token, unknown)

	secret, fingerprint, err := api.ParseJoinToken(many.Token)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("0", 64)
	refused("made up", api.FormatJoinToken(other, fingerprint), unknown)
	// A server of another cluster must not see the secret: it is found out before.
	refused("of another cluster", api.FormatJoinToken(secret, other), "is not of the cluster that made the token", "--wait", "5s")
	refused("no token", "hfjoin.x", "no join token")

	s.expect(t, exitOK, "any", "join-token", "list")
	if out := s.expect(t, exitOK, "", "join-token", "list", "--json"); strings.Contains(out, secret) {
		t.Error("the list has the secret")
	}
	s.expect(t, exitOK, "", "join-token", "delete", many.ID)
	refused("taken back", many.Token, unknown)
	s.expect(t, exitNotFound, "no join token", "join-token", "delete", many.ID)

	// The secret is nowhere: not in the log, not on the disk.
	if strings.Contains(s.log.String(), secret) {
		t.Error("the log has the secret")
	}
	err = filepath.WalkDir(filepath.Join(s.dir, "data"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), secret) {
			t.Errorf("%s has the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestJoinTellsWhatItWasToldBeforeItsTimeWasOver: the last question may be cut short,
// which says nothing of why the node is not let in. It fails where that is told.
func TestJoinTellsWhatItWasToldBeforeItsTimeWasOver(t *testing.T) {
	ctx, over := context.WithCancel(t.Context())
	defer over()
	asked := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 1 {
			http.Error(w, "not now: the file is not in force yet", http.StatusConflict)
			return
		}
		over()
		<-r.Context().Done()
	}))
	defer server.Close()
	joining := api.Joining{Node: "fb1", Token: api.FormatJoinToken(strings.Repeat("0", 64), strings.Repeat("0", 64))}
	_, _, _, err := (&joinCmd{Servers: []string{server.URL}}).ask(ctx, joining)
	if err == nil || !strings.Contains(err.Error(), "not in force yet") || asked != 2 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

// TestJoinTellsWhatItWasToldLast: it fails where the servers' answers of the round
// before are told in place of what the first of them has said since.
func TestJoinTellsWhatItWasToldLast(t *testing.T) {
	ctx, over := context.WithCancel(t.Context())
	defer over()
	asked := 0 // of both: they are asked in turn
	server := func() string {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch asked++; asked {
			case 1, 2:
				http.Error(w, "not now: the file is not in force yet", http.StatusConflict)
			case 3:
				http.Error(w, "not now: there is no leader", http.StatusConflict)
			default:
				over()
				<-r.Context().Done()
			}
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	joining := api.Joining{Node: "fb1", Token: api.FormatJoinToken(strings.Repeat("0", 64), strings.Repeat("0", 64))}
	_, _, _, err := (&joinCmd{Servers: []string{server(), server()}}).ask(ctx, joining)
	if err == nil || !strings.Contains(err.Error(), "there is no leader") || asked != 4 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

// TestANodeIsGivenTheKeyThatIsInUse: it fails if one member that does not answer
// makes that the first key, which may have been removed, or one that can't say what
// it encrypts with counts.
func TestANodeIsGivenTheKeyThatIsInUse(t *testing.T) {
	silent := errors.New("2/4 nodes reported success")
	for name, test := range map[string]struct {
		primary map[string]int
		failed  error
		want    string
	}{
		"all say the same":          {map[string]int{"second": 4}, nil, "second\n"},
		"a change is under way":     {map[string]int{"second": 1, "third": 3}, nil, "third\n"},
		"one does not answer":       {map[string]int{"second": 3}, silent, "second\n"},
		"most can't say":            {map[string]int{"": 3, "second": 1}, silent, "second\n"},
		"nobody can say":            {map[string]int{"": 4}, silent, "first\n"},
		"nobody answers":            {nil, silent, "first\n"},
		"the gossip has plain text": {nil, nil, "first\n"},
	} {
		j := &joiner{keys: func(context.Context) (state.KeyringStatus, error) {
			return state.KeyringStatus{Nodes: 4, Primary: test.primary}, test.failed
		}}
		if got := j.gossipKey(t.Context(), []byte("first\n")); string(got) != test.want {
			t.Errorf("%s: it is given %q, want %q", name, got, test.want)
		}
	}
}

// A diskless node has one token for years. It comes up through every step of a
// change of the authority; only at the end the token is made anew.
func TestATokenIsGoodUntilItsAuthorityIsDropped(t *testing.T) {
	s := newJoinSite(t)
	ca, file := filepath.Join(s.dir, "ca"), filepath.Join(s.dir, "cluster.yaml")
	step := func(name string, more ...string) {
		t.Helper()
		args := append([]string{"pki", "rotate", name, "--ca", ca}, more...)
		s.until(t, "rotate "+name, func() bool {
			_, status := s.run(t, "", args...)
			return status == exitOK
		})
	}
	install := func() {
		t.Helper()
		s.expect(t, exitOK, "fbservice1", "pki", "issue", "--ca", ca, "--config", file, "--out", filepath.Join(s.dir, "issued"))
		s.expect(t, exitOK, "", "config", "reload")
	}
	old := s.token(t, "--uses", "any").Token
	disk := t.TempDir()
	boots := func(when, token string) {
		t.Helper()
		if out, status := s.join(t, t.TempDir(), token); status != exitOK {
			t.Errorf("%s: a diskless node: status %d: %s", when, status, out)
		}
		if out, status := s.join(t, disk, token); status != exitOK {
			t.Errorf("%s: a node with a disk: status %d: %s", when, status, out)
		}
	}
	boots("before", old)
	step("begin")
	boots("begun", old)
	install()
	step("switch", "--config", file, "--without", "fbservice2") // when the server trusts both
	boots("switched", old)
	install()
	fresh := s.token(t, "--uses", "any").Token
	// Finished when the server has a certificate by the new authority.
	boots("switched, and installed somewhere", old)
	boots("switched, and installed somewhere, with a new token", fresh)
	step("finish", "--config", file, "--without", "fbservice2")
	boots("finished", fresh)
	install()
	boots("finished, and installed", fresh)
	s.expect(t, exitOK, "fbservice2", "pki", "issue", "--ca", ca, "--config", file, "--out", filepath.Join(s.dir, "issued"), "--nodes", "fbservice2")
	if out, status := s.join(t, disk, old, "--pki", filepath.Join(s.dir, "issued", "fbservice2")); status != exitOK || !strings.Contains(out, "make a new one") {
		t.Errorf("finished: a node with a disk, new files and the old token: status %d: %s", status, out)
	}
	if out, status := s.join(t, t.TempDir(), old, "--wait", "5s"); status == exitOK || !strings.Contains(out, "make a new token") {
		t.Errorf("finished: a token of the old authority: status %d: %s", status, out)
	}
}

// A node that comes while the server's cluster file is another than the one in
// force goes on asking: it is let in once an admin has reloaded.
func TestANodeWaitsForAServerWhoseFileIsNotInForce(t *testing.T) {
	s := newJoinSite(t)
	token := s.token(t).Token
	s.edit(t, "other: {agent: false}", "other: {agent: false, run: []}")
	if err := os.Remove(filepath.Join(s.dir, "data", "cluster.last-good.yaml")); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if out, status := s.join(t, t.TempDir(), token, "--wait", "5s"); status == exitOK || !strings.Contains(out, "not in force yet: holdfast config reload") || time.Since(started) < 5*time.Second {
		t.Errorf("before a reload: status %d after %v: %s", status, time.Since(started), out)
	}
	s.expect(t, exitOK, "", "config", "reload")
	if out, status := s.join(t, t.TempDir(), token); status != exitOK {
		t.Errorf("after a reload: status %d: %s", status, out)
	}
}

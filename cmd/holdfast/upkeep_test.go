package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/discovery"
	"holdfast/internal/health"
	"holdfast/internal/peer"
)

// What begins anew must not find its old vote again, must keep what is damaged
// for who looks into it, and must be started again by its supervisor.
func TestDamagedStoreIsSetAsideAndTheAgentEndsForARestart(t *testing.T) {
	c := &agentCmd{DataDir: t.TempDir(), RunDir: t.TempDir()}
	for _, name := range []string{"raft/log.db", "store-identity", discovery.NodeIDFile, "unrelated"} {
		path := filepath.Join(c.DataDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ended := 0
	base := &foundation{log: slog.New(slog.DiscardHandler), end: func() { ended++ }}
	if err := base.endedAnew(); err != nil {
		t.Errorf("an agent that ends as any other: %v", err)
	}
	if err := c.beginAnew(base); err != nil || ended != 1 {
		t.Fatalf("%v, ended %d times", err, ended)
	}
	if e, ok := errors.AsType[*exitError](base.endedAnew()); !ok || e.status != exitRestart {
		t.Errorf("ends with %v, want exit status %d", base.endedAnew(), exitRestart)
	}
	for name, stays := range map[string]bool{"raft/log.db": false, "store-identity": false, discovery.NodeIDFile: false, "unrelated": true} {
		if _, err := os.Stat(filepath.Join(c.DataDir, name)); (err == nil) != stays {
			t.Errorf("%s stays: %v, want %v", name, err == nil, stays)
		}
		kept, _ := filepath.Glob(filepath.Join(c.DataDir, "damaged-*", name))
		if (len(kept) == 1) == stays {
			t.Errorf("%s is kept as %v", name, kept)
		}
	}
}

// A store that can't be set aside must not end the agent: its successor would
// find the same.
func TestAgentGoesOnWhenItsStoreCannotBeSetAside(t *testing.T) {
	c := &agentCmd{DataDir: filepath.Join(t.TempDir(), "missing"), RunDir: t.TempDir()}
	base := &foundation{log: slog.New(slog.DiscardHandler), end: func() { t.Error("the agent ends") }}
	if err := c.beginAnew(base); err == nil || base.endedAnew() != nil {
		t.Errorf("%v, and ends with %v", err, base.endedAnew())
	}
}

func TestCertificateIssuedAnewIsTakenUpAndABadOneIsToldOf(t *testing.T) {
	ca, dir := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "fb1")
	if err := peer.Init(ca, "foobar"); err != nil {
		t.Fatal(err)
	}
	issue := func(days int) {
		t.Helper()
		r := peer.Request{Identity: peer.Identity{Name: "fb1", Role: peer.RoleServer}, Validity: time.Duration(days) * 24 * time.Hour}
		if err := peer.Issue(ca, dir, r); err != nil {
			t.Fatal(err)
		}
	}
	issue(10)
	trust, err := peer.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	board := health.NewBoard(time.Now, nil, nil)
	certs, err := newCertificates(trust, board, slog.New(slog.DiscardHandler), prometheus.NewPedanticRegistry())
	if err != nil {
		t.Fatal(err)
	}
	certs.now = func() time.Time { return time.Now().Add(-60 * 24 * time.Hour) } // the end is another test's
	step := func(what string, days int, told bool) {
		t.Helper()
		certs.look()
		left := time.Until(trust.Expires())
		if d := int(left.Hours()/24 + 0.5); d != days {
			t.Errorf("%s: it ends in %d days, want %d", what, d, days)
		}
		if list := board.Conditions(); (len(list) > 0) != told {
			t.Errorf("%s: conditions %v", what, list)
		}
	}
	step("nothing new", 10, false)
	issue(20)
	step("issued anew", 20, false)
	good, err := os.ReadFile(filepath.Join(dir, "node.crt"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "node.crt"), good[:len(good)/2], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	step("half a file", 20, true)
	issue(40)
	step("issued once more", 40, false)
}

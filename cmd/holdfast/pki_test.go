package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestValidityIsReadInDaysAndYears(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{"36h": 36 * time.Hour, "10d": 10 * day, "5y": 5 * 365 * day, "292y": 292 * 365 * day} {
		var v validity
		if err := v.UnmarshalText([]byte(text)); err != nil || time.Duration(v) != want {
			t.Errorf("%s: %s, %v", text, time.Duration(v), err)
		}
	}
	for _, text := range []string{"", "5", "0d", "-1y", "1.5y", "293y", "y", "-3h", "0h"} {
		var v validity
		if err := v.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for %s", text, time.Duration(v))
		}
	}
}

func TestPKIIssueGivesTheGossipKeyToServersUnlessOthersAreNamed(t *testing.T) {
	n := &node{dir: t.TempDir()}
	ca, out := filepath.Join(n.dir, "ca"), filepath.Join(n.dir, "issued")
	n.expect(t, exitOK, "made the authority", "pki", "init", "--dir", ca, "--cluster", "foobar")
	issue := func(more ...string) []string {
		return append([]string{"pki", "issue", "--ca", ca, "--config", "../../examples/scibian.yaml", "--out", out}, more...)
	}
	if text := n.expect(t, exitOK, "fbservice4", issue("--validity", "10d")...); strings.Contains(text, "fbfront") || strings.Contains(text, "fbadmin") {
		t.Errorf("nodes that run no agent with a certificate have one:\n%s", text)
	}
	n.expect(t, exitOK, "fbfront1", issue("--nodes", "fbfront1")...)
	n.expect(t, exitOK, "fbcn01", issue("--nodes", "fbcn01")...)
	for name, want := range map[string]bool{"fbservice1": true, "fbfront1": true, "fbcn01": false} {
		if _, err := os.Stat(filepath.Join(out, name, "gossip.key")); (err == nil) != want {
			t.Errorf("%s has the gossip's key: %v, want %v", name, err == nil, want)
		}
	}
}

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/lb"
)

func TestTopTellsRatesBetweenTwoLooks(t *testing.T) {
	look := func(connections, in uint64) *lb.Status {
		return &lb.Status{Services: []lb.ServiceStatus{{Name: "ssh", Servers: []lb.ServerStatus{{Node: "f1", Up: true, Weight: 2, Active: 3, Connections: connections, BytesIn: in}}}}}
	}
	for _, c := range []struct {
		before, now *lb.Status
		want        []string
	}{
		{look(10, 1000), look(30, 5000), []string{"ssh", "f1", "up", "2", "3", "10.0", "2.0"}},
		{look(30, 5000), look(4, 500), []string{"ssh", "f1", "up", "2", "3", "2.0", "0.2"}}, // counters that begin anew
		{&lb.Status{}, look(4, 0), []string{"ssh", "f1", "up", "2", "3", "2.0", "0.0"}},
	} {
		if diff := cmp.Diff([][]string{c.want}, topRows(c.before, c.now, 2*time.Second)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestADrainTellsWhoIsLeftAndForHowLong(t *testing.T) {
	now := time.Now()
	st := lb.Status{
		Drains: map[string]lb.Drain{"f3": {Since: now.Add(-time.Hour)}},
		People: map[string]lb.People{"f3": {At: now, First: 2, Logins: []lb.Login{{User: "ada\x1b[2J", TTY: "pts/0", From: "10.3.0.7", Last: now.Add(-10 * time.Minute)}}}},
	}
	var out bytes.Buffer
	printDrain(&console{out: &out}, &st, "f3")
	for _, want := range []string{"1 logins on f3", "about 1h0m0s more", "pts/0", "10.3.0.7", "idle 10m"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("a user's name reaches the terminal as it is")
	}
}

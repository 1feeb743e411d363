package vrrp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAReleaseByWhichAnAddressGoesIsHeardFirst: another takes it back from this node,
// which held it by order, or this one from a worse one, for which it had stood back.
// It fails if the node that loses it hears of it late or not at all; and if one does
// that keeps it, since it was told to hold as well, or the better one is dead or gave it
// up: its clients would wait for nothing.
func TestAReleaseByWhichAnAddressGoesIsHeardFirst(t *testing.T) {
	now := time.Now()
	held := func(r *RouterReport, theirs uint8, before time.Duration) { // its last advert was so long before this node took over
		r.Status.Pulled = true
		r.Status.Peers[0].Advert.Priority, r.Status.Peers[0].At = theirs, r.Status.Since.Add(-before)
	}
	back := func(r *RouterReport, theirs uint8) {
		r.Status.Yielded, r.Status.Priority = true, 1
		r.Status.Peers[0].Advert.Priority = theirs
	}
	const here, there = "hear fbservice1 dns1, release dns1", "hear fbservice2 dns1, release dns1"
	for name, test := range map[string]struct {
		state State
		set   func(*RouterReport)
		want  string
	}{
		"held in place of a better":     {Active, func(r *RouterReport) { held(r, 253, time.Second) }, here},
		"held in place of an equal":     {Active, func(r *RouterReport) { held(r, 252, time.Second) }, ""}, // which takes nothing over
		"held in place of a worse":      {Active, func(r *RouterReport) { held(r, 251, time.Second) }, ""},
		"held, and a better is dead":    {Active, func(r *RouterReport) { held(r, 253, 4*time.Second) }, ""},
		"held, and a better gave it up": {Active, func(r *RouterReport) { held(r, 0, time.Second) }, ""},
		"held since before the agent": {Active, func(r *RouterReport) {
			held(r, 0, 0)
			r.Status.Peers = nil
			r.Settings.Order = []string{"fbservice2", "fbservice1"}
		}, here},
		"held, and first in the order":    {Active, func(r *RouterReport) { held(r, 0, 0); r.Status.Peers = nil }, ""},
		"held, and kept":                  {Active, func(r *RouterReport) { held(r, 253, 0); r.Settings.Preempt = false }, ""},
		"held by priority":                {Active, func(r *RouterReport) { held(r, 253, 0); r.Status.Pulled = false }, ""},
		"stood back for a worse":          {Backup, func(r *RouterReport) { back(r, 251) }, there},
		"stood back for an equal":         {Backup, func(r *RouterReport) { back(r, 252) }, ""},
		"stood back for a better":         {Backup, func(r *RouterReport) { back(r, 253) }, ""},
		"stood back for one told to hold": {Backup, func(r *RouterReport) { back(r, 254) }, ""},
		"stood back, for later":           {Backup, func(r *RouterReport) { back(r, 251); r.Settings.PreemptDelay = time.Minute }, ""},
	} {
		fake := newFake(test.state, now)
		fake.report.Status.Released = 252
		test.set(&fake.report)
		admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake, HearOut: func(_ context.Context, node string, d Departure) error {
			fake.told = append(fake.told, "hear "+node+" "+d.Router)
			return errors.New("it is busy")
		}})
		var released Released
		status, text := request(t, admin, "POST", "release/dns1", &released)
		if status != 200 || (released.Note == "") != (test.want == "") || released.Name != "dns1" {
			t.Errorf("%s: %d %s", name, status, text)
		}
		if got := strings.Join(fake.told, ", "); got != cmp.Or(test.want, "release dns1") {
			t.Errorf("%s: %s; want %q", name, got, test.want)
		}
	}
}

// TestAGroupIsReleasedAsOne: it is taken back from this node though only the member that
// lost to it was heard with a priority, since the others gave up with 0; and this node
// takes it when all its members are better. It fails if the named router alone is looked
// at.
func TestAGroupIsReleasedAsOne(t *testing.T) {
	now := time.Now()
	two := func(state State, theirs ...uint8) []RouterReport {
		var all []RouterReport
		for i, priority := range theirs {
			r := newFake(state, now).report
			r.Settings.Name, r.Settings.Group = fmt.Sprint("dns", i+1), "front"
			r.Status.Released, r.Status.Pulled, r.Status.Yielded = 252, state == Active, state == Backup
			r.Status.Peers[0].Advert.Priority, r.Status.Peers[0].At = priority, r.Status.Since.Add(-time.Second)
			all = append(all, r)
		}
		alone := newFake(state, now).report // in no group
		alone.Settings.Name, alone.Settings.Preempt = "alone", false
		return append(all, alone)
	}
	for name, test := range map[string]struct {
		reports []RouterReport
		want    string
	}{
		"held in place of a better":  {two(Active, 253, 0), "fbservice1"},
		"held in place of a worse":   {two(Active, 251, 0), ""},
		"stood back for a worse":     {two(Backup, 251, 250), "fbservice2"},
		"stood back for one of each": {two(Backup, 251, 253), ""},
	} {
		for _, router := range []string{"dns1", "dns2"} {
			if got := LosesByRelease(test.reports, router, "fbservice1"); got != test.want {
				t.Errorf("%s: by a release of %s loses %q, want %q", name, router, got, test.want)
			}
		}
		if got := LosesByRelease(test.reports, "alone", "fbservice1") + LosesByRelease(test.reports, "none", "fbservice1"); got != "" {
			t.Errorf("%s: others: %q", name, got)
		}
	}
}

// TestWhoIsAboutToTakeItIsHeardByTheHolderAlone.
func TestWhoIsAboutToTakeItIsHeardByTheHolderAlone(t *testing.T) {
	for _, state := range []State{Active, Backup} {
		fake := newFake(state, time.Now())
		heard := ""
		admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake, HearOut: func(_ context.Context, node string, d Departure) error {
			heard = fmt.Sprint(node, " ", d)
			return errors.New("it is busy")
		}})
		var told Told
		status, text := request(t, admin, "POST", "leave/dns1?in=3s&by=fbservice2", &told)
		switch {
		case state == Active && (status != 500 || !strings.Contains(text, "it is busy") || heard != "fbservice1 {dns1 3s fbservice2}"):
			t.Errorf("the holder: %d %s, told %q", status, text, heard)
		case state == Backup && (status != 200 || told.Holds || heard != ""):
			t.Errorf("another: %d %s, told %q", status, text, heard)
		}
		if len(fake.told) > 0 {
			t.Errorf("the router was given orders: %q", fake.told)
		}
		if status, _ := request(t, admin, "POST", "leave/dns1?in=soon", nil); status != http.StatusConflict {
			t.Errorf("in a time that is none: %d", status)
		}
		if status, _ := request(t, admin, "POST", "leave/nothing", nil); status != http.StatusNotFound {
			t.Errorf("of nobody: %d", status)
		}
	}
}

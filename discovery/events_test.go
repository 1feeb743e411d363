package discovery

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/serf/serf"

	"holdfast/internal/state"
)

func TestAnEventReachesWhomItConcerns(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hosts := b.servers(3)
	fired, err := hosts[0].FireEvent(t.Context(), state.UserEvent{Name: "deploy", Payload: []byte("v2"), NodeFilter: "^fbservice[23]$"})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts[1:] {
		eventually(t, "the event", func() bool {
			list, _ := h.Events()
			return len(list) == 1 && list[0].ID == fired.ID && string(list[0].Payload) == "v2"
		})
	}
	if list, _ := hosts[0].Events(); len(list) != 0 {
		t.Errorf("a node that the filter leaves out heard %+v", list)
	}
}

func TestEventsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h := b.servers(1)[0]
	for name, e := range map[string]state.UserEvent{
		"no name":                        {},
		"a long name":                    {Name: strings.Repeat("x", 200)},
		"a filter that is none":          {Name: "x", NodeFilter: "("},
		"a tag filter without a service": {Name: "x", TagFilter: "a"},
		"a large payload":                {Name: "x", Payload: make([]byte, maxEvent)},
	} {
		if _, err := h.FireEvent(t.Context(), e); !errors.Is(err, state.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFiltersChooseNodesServicesAndTags(t *testing.T) {
	services := []state.Service{{Name: "web", Tags: []string{"blue"}}, {Name: "db"}}
	for _, test := range []struct {
		node, service, tag string
		want               bool
	}{
		{"", "", "", true}, {"n1", "", "", true}, {"n2", "", "", false}, {"", "web", "", true}, {"", "^we$", "", false},
		{"", "web", "blue", true}, {"", "db", "blue", false}, {"", "web", "green", false}, {"n2", "web", "blue", false},
	} {
		e := state.UserEvent{NodeFilter: test.node, ServiceFilter: test.service, TagFilter: test.tag}
		if got := concerns(e, "n1", services); got != test.want {
			t.Errorf("%+v: %t", test, got)
		}
	}
}

// A node that comes back hears from the others what they remember.
func TestOldNewsIsNotTold(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h := b.servers(1)[0]
	say := func(id string, fired time.Time) {
		payload, err := json.Marshal(eventWire{ID: id, Fired: fired})
		if err != nil {
			t.Fatal(err)
		}
		h.heard(serf.UserEvent{Name: eventPrefix + "x", Payload: payload})
	}
	now := time.Now()
	say("00000000-0000-4000-8000-000000000001", now.Add(-time.Hour))
	say("00000000-0000-4000-8000-000000000002", now)
	say("00000000-0000-4000-8000-000000000002", now)
	if list, _ := h.Events(); len(list) != 1 || list[0].ID[35] != '2' {
		t.Errorf("%+v", list)
	}
}

func TestOnlyTheLatestEventsAreKept(t *testing.T) {
	e := newEvents()
	for range eventsKept + 10 {
		e.add(state.UserEvent{ID: newEventID()})
	}
	if len(e.list) != eventsKept {
		t.Errorf("%d", len(e.list))
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add("holdfast:x", []byte(`{"i":"00000000-0000-4000-8000-000000000001","p":"YQ==","n":"a.*","f":"2026-11-25T00:00:00Z"}`), uint64(3))
	f.Fuzz(func(t *testing.T, name string, payload []byte, ltime uint64) {
		if e, _, ok := decodeEvent(name, payload, ltime); ok {
			if checkEvent(e) != nil || !validUUID(e.ID) {
				t.Fatalf("%+v was taken", e)
			}
			concerns(e, "n1", []state.Service{{Name: "a", Tags: []string{"b"}}})
		}
	})
}

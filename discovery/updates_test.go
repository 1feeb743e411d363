package discovery

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

func TestTheTimeOfTTLUpdatesSurvivesARestart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	h := b.start(withServices(b.config(1),
		ServiceDefinition{Service: state.Service{Name: "backup"}, Checks: []check.Definition{{TTL: 26 * time.Hour}}},
		ServiceDefinition{Service: state.Service{Name: "beat"}, Checks: []check.Definition{{TTL: 30 * time.Second}}},
	))
	began := time.Now()
	for _, id := range []string{"service:backup", "service:beat"} {
		if err := h.UpdateTTL(id, state.Passing, "fine"); err != nil {
			t.Fatal(err)
		}
	}
	h.stop() // the update is on the disk when Run has ended, at the latest
	again, err := New(h.config, Deps{State: h.store, Proposer: b, Leadership: h})
	if err != nil {
		t.Fatal(err)
	}
	if at := again.updates.of("service:backup"); at.Before(began) || at.After(time.Now()) {
		t.Errorf("updated at %s, want a moment after %s", at, began)
	}
	if at := again.updates.of("service:beat"); !at.IsZero() {
		t.Errorf("a short TTL was kept: %s", at)
	}

	again.updates.last["gone"] = began
	if err := again.updates.write(func(id string) bool { return id != "gone" }); err != nil {
		t.Fatal(err)
	}
	if again.updates.of("gone") != (time.Time{}) {
		t.Error("the update of a check that is gone is still kept")
	}
}

func TestDamagedTTLUpdatesKeepNobodyFromStarting(t *testing.T) {
	b := newBed(t)
	config := b.config(1)
	for _, text := range []string{"", "{", `{"version": 2}`, `{"version": 1, "last": {"a": "yesterday"}}`} {
		if err := os.WriteFile(filepath.Join(config.DataDir, updatesFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadUpdates(config.DataDir); err == nil {
			t.Errorf("%q was read without an error", text)
		}
		if _, err := New(config, Deps{State: state.New(), Proposer: b, Leadership: &host{bed: b}}); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzDecodeUpdates(f *testing.F) {
	f.Add([]byte(`{"version": 1, "last": {"service:backup": "2026-11-21T22:00:00.5Z"}}`))
	f.Add([]byte(`{"version": 1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		last, err := decodeUpdates(data)
		if err != nil {
			return
		}
		u := &updates{path: filepath.Join(t.TempDir(), updatesFile), last: last}
		if err := u.write(func(string) bool { return true }); err != nil {
			t.Skip(err) // a year that can't be written
		}
		written, err := os.ReadFile(u.path)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeUpdates(written)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(last, again); diff != "" {
			t.Errorf("read again (-want +got):\n%s", diff)
		}
	})
}

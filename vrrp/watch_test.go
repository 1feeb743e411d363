package vrrp

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"

	"holdfast/internal/kernel/link"
)

// TestAnInterfaceIsTrackedUnderTheNameThatItHas: one that gets another name is no
// longer up under the old one, also for who begins to track it then.
func TestAnInterfaceIsTrackedUnderTheNameThatItHas(t *testing.T) {
	var told []string
	w := newWatcher(nil, slog.New(slog.DiscardHandler), func(name string, up bool, _ int) {
		told = append(told, fmt.Sprint(name, " ", up))
	})
	hears := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(told, want) {
			t.Errorf("%s: told %q, want %q", what, told, want)
		}
		told = nil
	}
	watches := []Watch{{Kind: WatchInterface, Name: "old", Target: "eth2"}, {Kind: WatchInterface, Name: "new", Target: "ib0"}}
	set := func() {
		t.Helper()
		if err := w.set(nil, watches); err != nil {
			t.Fatal(err)
		}
	}
	set()
	hears("at the start", "old false", "new false")
	w.linkChanged(&link.Link{Index: 3, Name: "eth2", Running: true}, false)
	hears("it runs", "old true")
	w.linkChanged(&link.Link{Index: 3, Name: "eth2", Running: true}, false)
	hears("nothing changed")
	w.linkChanged(&link.Link{Index: 3, Name: "ib0", Running: true}, false)
	hears("it has another name", "old false", "new true")
	set()
	hears("after a reload", "old false", "new true")
	w.linkChanged(&link.Link{Index: 4, Name: "eth2"}, false)
	hears("another has the old name, and no carrier")
	w.linkChanged(&link.Link{Index: 4, Name: "eth2", Running: true}, false)
	hears("and a carrier", "old true")
	w.linkChanged(&link.Link{Index: 3, Name: "ib0", Running: true}, true)
	hears("the first is gone", "new false")
}

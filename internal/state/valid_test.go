package state

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestOutputIsCutBetweenRunes(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     int
	}{
		{"short", "ok", 2},
		{"just fits", strings.Repeat("x", MaxOutput), MaxOutput},
		{"one more", strings.Repeat("x", MaxOutput+1), MaxOutput},
		{"two bytes a rune", "x" + strings.Repeat("é", MaxOutput), MaxOutput - 1},
		{"four bytes a rune", "x" + strings.Repeat("🌿", MaxOutput), MaxOutput - 3},
		{"no text at all", strings.Repeat("\x80", MaxOutput+1), MaxOutput},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New()
			apply(t, s, 1, Register{Node: Node{Name: "n", Address: netip.MustParseAddr("10.1.0.1")}, Checks: []Check{{ID: "a", Output: c.in}, {ID: "b"}}})
			apply(t, s, 2, UpdateCheck{Node: "n", Updates: []CheckState{{"b", Critical, c.in}}})
			checks, _ := s.Snapshot().NodeChecks(nil, "n")
			for _, chk := range checks {
				if len(chk.Output) != c.want || utf8.ValidString(c.in) != utf8.ValidString(chk.Output) || !strings.HasPrefix(c.in, chk.Output) {
					t.Errorf("check %s keeps %d bytes, not %d", chk.ID, len(chk.Output), c.want)
				}
			}
			// The same output once more is the same after the cut, too.
			version := s.Snapshot().Version()
			apply(t, s, 3, UpdateCheck{Node: "n", Updates: []CheckState{{"b", Critical, c.in}}})
			if s.Snapshot().Version() != version {
				t.Error("an equal output woke somebody")
			}
		})
	}
}

// TestLimits tries each limit, and one more.
func TestLimits(t *testing.T) {
	node := Node{Name: "n", Address: netip.MustParseAddr("10.1.0.1")}
	long := func(n int) string { return strings.Repeat("x", n) }
	pairs := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[long(i+1)] = ""
		}
		return m
	}
	for _, c := range []struct {
		name  string
		limit int
		make  func(n int) Command
	}{
		{"node name", MaxName, func(n int) Command { return Register{Node: Node{Name: long(n), Address: node.Address}} }},
		{"node ID", MaxName, func(n int) Command { return Register{Node: Node{Name: "n", ID: long(n), Address: node.Address}} }},
		{"metadata pairs", MaxMeta, func(n int) Command {
			return Register{Node: Node{Name: "n", Address: node.Address, Meta: pairs(n)}}
		}},
		{"metadata key", MaxMetaKey, func(n int) Command {
			return Register{Node: node, Services: []Service{{Name: "s", Meta: map[string]string{long(n): ""}}}}
		}},
		{"metadata value", MaxMetaValue, func(n int) Command {
			return Register{Node: node, Services: []Service{{Name: "s", Meta: map[string]string{"k": long(n)}}}}
		}},
		{"service name", MaxName, func(n int) Command { return Register{Node: node, Services: []Service{{Name: long(n), ID: "i"}}} }},
		{"service ID", MaxName, func(n int) Command { return Register{Node: node, Services: []Service{{Name: "s", ID: long(n)}}} }},
		{"tag", MaxName, func(n int) Command {
			return Register{Node: node, Services: []Service{{Name: "s", Tags: []string{long(n)}}}}
		}},
		{"tags", MaxTags, func(n int) Command {
			return Register{Node: node, Services: []Service{{Name: "s", Tags: strings.Split(long(n), "")}}}
		}},
		{"check ID", MaxName, func(n int) Command { return Register{Node: node, Checks: []Check{{ID: long(n), Name: "c"}}} }},
		{"check name", MaxName, func(n int) Command { return Register{Node: node, Checks: []Check{{ID: "c", Name: long(n)}}} }},
		{"check notes", MaxNotes, func(n int) Command { return Register{Node: node, Checks: []Check{{ID: "c", Notes: long(n)}}} }},
		{"check type", MaxName, func(n int) Command { return Register{Node: node, Checks: []Check{{ID: "c", Type: long(n)}}} }},
		{"key", MaxKey, func(n int) Command { return set(long(n), "") }},
		{"value", MaxValue, func(n int) Command { return set("k", long(n)) }},
		{"document kind", MaxName, func(n int) Command { return PutDocument{Set, Document{Kind: long(n), Key: "k"}} }},
		{"document key", MaxKey, func(n int) Command { return PutDocument{Set, Document{Kind: "k", Key: long(n)}} }},
		{"document value", MaxValue, func(n int) Command {
			return PutDocument{Set, Document{Kind: "k", Key: "k", Value: []byte(long(n))}}
		}},
		{"cluster ID", MaxName, func(n int) Command { return SetCluster{Cluster{ID: long(n)}} }},
		{"cluster name", MaxName, func(n int) Command { return SetCluster{Cluster{ID: "i", Name: long(n)}} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New()
			if err := s.Apply(1, c.make(c.limit)); err != nil {
				t.Errorf("%d: %.200v", c.limit, err)
			}
			version := s.Snapshot().Version()
			err := s.Apply(2, c.make(c.limit+1))
			if !errors.Is(err, ErrInvalid) || len(err.Error()) > 1024 {
				t.Errorf("%d: %.200v", c.limit+1, err)
			}
			if s.Snapshot().Version() != version {
				t.Error("a refused command changed something")
			}
		})
	}
}

func TestFoldIsForASCIIOnly(t *testing.T) {
	for in, want := range map[string]string{"": "", "apt": "apt", "APT": "apt", "web-Boot2": "web-boot2", "É": "É", "İx": "İx", "@[`{": "@[`{", "AZaz": "azaz"} {
		if got := Fold(in); got != want {
			t.Errorf("Fold(%q) = %q, not %q", in, got, want)
		}
	}
}

func TestUnknownCommandTypeIsRefused(t *testing.T) {
	if err := New().Apply(1, &KV{Verb: Set, Entry: Entry{Key: "k"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("Apply of a pointer = %v", err)
	}
	if err := New().Apply(1, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("Apply of nil = %v", err)
	}
}

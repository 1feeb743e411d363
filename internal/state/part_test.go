package state

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// body is a part's rows: what stands between the header, which has the index of
// the last command of any kind, and the checksum of all.
func body(t *testing.T, s *Snapshot, p Part) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WritePart(&b, p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[headerSize : b.Len()-32]
}

func TestAPartThatFollowsStaysEqualToThePartOfTheWhole(t *testing.T) {
	part := Part{Kinds: []string{"k"}}
	for seed := range uint64(60) {
		g, whole, follower := newGenerator(seed), New(), New()
		var at Position
		index := uint64(0)
		for range 120 {
			index += 1 + g.Uint64N(3)
			_ = whole.Apply(index, g.command(index))
			if g.IntN(30) == 0 { // an operator puts a snapshot back
				var saved bytes.Buffer
				if _, err := whole.Snapshot().WriteTo(&saved); err != nil {
					t.Fatal(err)
				}
				if err := whole.Restore(&saved); err != nil {
					t.Fatal(err)
				}
			}
			if g.IntN(4) > 0 {
				continue
			}
			commands, next, ok := whole.Committed(at, part)
			if !ok {
				var snap *Snapshot
				snap, next = whole.Whole()
				var copied bytes.Buffer
				if err := snap.WritePart(&copied, part); err != nil {
					t.Fatal(err)
				}
				if err := follower.Restore(&copied); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			for _, c := range commands {
				if err := follower.Apply(c.Index, c.Cmd); err != nil {
					t.Fatalf("seed %d: entry %d, %T: %v", seed, c.Index, c.Cmd, err)
				}
			}
			if at = next; at.Index() != index {
				t.Fatalf("seed %d: it is behind entry %d, not %d", seed, at.Index(), index)
			}
			if !bytes.Equal(body(t, whole.Snapshot(), part), body(t, follower.Snapshot(), part)) {
				t.Fatalf("seed %d: at entry %d the part that followed is another than the whole's", seed, index)
			}
		}
	}
}

func TestAPartTellsNothingOfWhatIsWithheld(t *testing.T) {
	s := New()
	for i, cmd := range []Command{
		Register{Node: Node{Name: "fb1", Address: netip.MustParseAddr("10.1.0.1")}},
		CreateSession{Session{ID: "session-secret", Node: "fb1"}},
		KV{Set, Entry{Key: "key-secret/a", Value: []byte("value-secret")}},
		KV{Acquire, Entry{Key: "held-secret", Session: "session-secret"}},
		KV{Delete, Entry{Key: "key-secret/a"}},
		PutDocument{Set, Document{Kind: "acl-secret", Key: "token-secret", Value: []byte("{}")}},
		PutDocument{Delete, Document{Kind: "acl-secret", Key: "token-secret"}},
		PutDocument{Set, Document{Kind: "acl-secret", Key: "other-secret", Value: []byte("{}")}},
		PutDocument{Set, Document{Kind: "dns/record", Key: "shown", Value: []byte("{}")}},
		DestroySession{ID: "session-secret"},
	} {
		if err := s.Apply(uint64(i)+1, cmd); err != nil {
			t.Fatalf("%T: %v", cmd, err)
		}
	}
	part := Part{Kinds: []string{"dns/record"}}
	for what, text := range map[string]string{
		"the snapshot": string(body(t, s.Snapshot(), part)),
		"the commands": commandsText(t, s, part),
	} {
		if strings.Contains(text, "secret") {
			t.Errorf("%s tells of what is withheld: %q", what, text)
		}
	}
	if !bytes.Contains(body(t, s.Snapshot(), part), []byte("shown")) {
		t.Error("the part lacks its own documents")
	}
}

// commandsText is what a follower that is at the first entry is sent.
func commandsText(t *testing.T, s *Store, part Part) string {
	t.Helper()
	_, at := s.Whole()
	at.index = 1
	list, _, ok := s.Committed(at, part)
	if !ok || len(list) != 1 {
		t.Fatalf("%d commands, %v", len(list), ok)
	}
	var text []byte
	for _, c := range list {
		b, err := Encode(c.Cmd)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	return string(text)
}

func TestAFollowerThatIsTooFarBehindIsToldSo(t *testing.T) {
	s := New()
	_, at := s.Whole()
	for i := range uint64(committedSize + 1) {
		must(s.Apply(i+1, PutDocument{Set, Document{Kind: "k", Key: "a", Value: []byte{byte(i), byte(i >> 8)}}}))
	}
	if _, _, ok := s.Committed(at, Part{}); ok {
		t.Error("commands that were dropped count as complete")
	}
	if _, _, ok := s.Committed(Position{}, Part{}); ok {
		t.Error("who is nowhere is given commands")
	}
	if n := len(s.committed.commands); n > committedSize {
		t.Errorf("%d commands are kept", n)
	}
	if !slices.IsSortedFunc(s.committed.commands, func(a, b Committed) int { return int(a.Index) - int(b.Index) }) {
		t.Error("they are out of order")
	}
}

package logrelay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

func newJournal(t *testing.T) *journal.Journal {
	t.Helper()
	j, err := journal.Open(journal.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// judge gives a session's frames to what knows stored lines; it returns how
// many are dropped.
func judge(stored, frames []string) (dropped int) {
	r := newRecent()
	source := netip.MustParseAddr("10.1.0.31")
	for _, line := range stored {
		r.add(journal.Record{Time: 1, Source: source, Input: viaRELP, Data: []byte(line)})
	}
	first := r.resent(source, 2)
	if first == nil {
		return 0
	}
	for i, f := range frames {
		switch first.take(r.hash([]byte(f))) {
		case again:
			return i + 1
		case unseen:
			return 0
		case open:
		}
	}
	return 0
}

func TestOnlyTheEndOfWhatIsStoredIsDropped(t *testing.T) {
	for _, test := range []struct {
		stored, frames string
		want           int
	}{
		{"a b c", "c d e", 1},
		{"a b c", "a b c d", 3},
		{"a b c", "b c", 2},
		{"a b c", "d e", 0},
		{"a b c", "b d", 0},     // not its end: b is another line
		{"a b c", "a b", 0},     // not yet: what follows may be c
		{"a b a b", "a b c", 2}, // the shorter: rather twice than lost
		{"a a a", "a a a", 1},
		{"", "a", 0},
	} {
		if got := judge(strings.Fields(test.stored), strings.Fields(test.frames)); got != test.want {
			t.Errorf("stored %q, a session of %q: %d are dropped, want %d", test.stored, test.frames, got, test.want)
		}
	}
}

// TestNoLineIsDroppedThatIsNotStored: a client that sends what was not answered,
// whatever a server has stored of it, ends with every line once.
func TestNoLineIsDroppedThatIsNotStored(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		sent := random.IntN(400)
		var stored []string
		for i := range sent {
			stored = append(stored, fmt.Sprint("line ", i))
		}
		answered := sent - random.IntN(min(sent, relp.Window)+1)
		var frames []string
		for i := answered; i < sent+random.IntN(200); i++ {
			frames = append(frames, fmt.Sprint("line ", i))
		}
		frames = frames[:min(len(frames), relp.Window*2)]
		want := sent - answered
		if len(frames) < want {
			want = 0
		}
		if got := judge(stored, frames); got != want {
			t.Fatalf("%d sent, %d answered: %d dropped, want %d", sent, answered, got, want)
		}
	}
}

func TestSendersAreBounded(t *testing.T) {
	r := newRecent()
	for i := range maxSources + 1000 {
		r.put(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1, 1)
	}
	if len(r.senders) > maxSources {
		t.Errorf("%d senders", len(r.senders))
	}
}

// TestAfterAMoveTheOtherNodeDropsWhatTheFirstHasStored: the client did not hear
// of its last lines, and sends them to the next node. So it is with the node
// itself when it starts again.
func TestAfterAMoveTheOtherNodeDropsWhatTheFirstHasStored(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	all[0].replicaPatience = time.Minute
	all[1].start(t)
	all[0].start(t)
	all[0].send(t, 0, 100)
	all[0].end()
	all[1].send(t, 60, 100) // 40 of them are there
	all[1].end()
	pki := filepath.Join(filepath.Dir(all[1].dir), "pki-fb2")
	all[1].make(t, all, pki)
	all[1].start(t)
	all[1].send(t, 150, 50) // 10 of them
	eventually(t, time.Minute, "every line is there once, in order", func() error {
		got := all[1].files(t)
		if len(got) != 200 || !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != 200 {
			return fmt.Errorf("%d lines, sorted %v", len(got), slices.IsSorted(got))
		}
		return nil
	})
}

// TestALineThatOnlyLooksSentAgainIsStored: the first frame fits, and nothing
// follows that decides.
func TestALineThatOnlyLooksSentAgainIsStored(t *testing.T) {
	all := nodes(t, "fb1", "fb2")
	all[0].replicaPatience = time.Minute
	all[1].start(t)
	all[0].start(t)
	all[0].send(t, 0, 3)
	all[0].send(t, 1, 1) // there is a line behind the one that fits
	b, err := os.ReadFile(filepath.Join(all[0].dir, "hosts", "cn01.log"))
	eventually(t, time.Minute, "four lines", func() error {
		b, err = os.ReadFile(filepath.Join(all[0].dir, "hosts", "cn01.log"))
		if n := bytes.Count(b, []byte("seq=")); err == nil && n != 4 {
			err = fmt.Errorf("%d lines", n)
		}
		return err
	})
}

// FuzzReplica: whatever another node says is a shipment of whole records, or refused.
func FuzzReplica(f *testing.F) {
	var batch journal.Batch
	batch.Add(journal.Record{Time: 1, Source: netip.MustParseAddr("10.0.0.1"), Input: viaRELP, Data: []byte("line")})
	f.Add(greeting{node: "fb1"}.append(nil))
	f.Add(shipment{7, 8, 1, batch.Bytes()}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if g, err := readGreeting(bytes.NewReader(b)); err == nil && !bytes.HasPrefix(b, g.append(nil)) {
			t.Fatalf("%+v is not what was said", g)
		}
		parseMark(b)
		var buf bytes.Buffer
		s, err := readShipment(bytes.NewReader(b), &buf)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, s.append(nil)) {
			t.Fatalf("%+v is not what was said", s)
		}
		n := 0
		if journal.BlockOf(s.first, s.count, s.payload).Each(func(uint64, journal.Record) bool { n++; return true }) == nil && n > len(b) {
			t.Fatalf("%d records in %d bytes", n, len(b))
		}
	})
}

package state

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
)

// TestTombstonesAreBounded deletes more keys than tombstones are kept.
func TestTombstonesAreBounded(t *testing.T) {
	t.Parallel()
	const keys = maxGraves + 100
	s, index := New(), uint64(0)
	next := func(cmd Command) { index++; apply(t, s, index, cmd) }
	next(set("stays", "v"))
	for i := range keys {
		next(set(fmt.Sprintf("%05d", i), "v"))
	}
	deleted := index // key i is deleted at deleted+i+1
	for i := range keys {
		next(KV{Verb: Delete, Entry: Entry{Key: fmt.Sprintf("%05d", i)}})
	}
	snap := s.Snapshot()
	if n := len(list[indexRow](snap.txn, tableIndex, "dead", []byte{byte(ofEntry)})); n != maxGraves {
		t.Errorf("%d tombstones, not %d", n, maxGraves)
	}
	floor := deleted + 100 // of the hundredth key, the last one reaped
	for _, c := range []struct {
		key  string
		want uint64
	}{
		{"00000", floor},          // reaped: not less than it was
		{"00099", floor},          // the last one reaped
		{"00100", deleted + 101},  // the oldest that is left
		{"never", floor},          // can't be told from a reaped one
		{"stays", 1},              // an entry that is there knows its index
		{"04195", deleted + keys}, // the newest
	} {
		_, got := snap.Entry(nil, c.key)
		if got != c.want {
			t.Errorf("key %s is at index %d, not %d", c.key, got, c.want)
		}
	}
	if _, got := snap.Entries(nil, "000"); got != floor {
		t.Errorf("the reaped prefix is at index %d, not %d", got, floor)
	}

	again := New()
	if err := again.Restore(bytes.NewReader(snapshotOf(t, s))); err != nil {
		t.Fatal(err)
	}
	// Both replicas reap the same tombstones from here on.
	for _, replica := range []*Store{s, again} {
		apply(t, replica, index+1, set("00100", "back"))
		apply(t, replica, index+2, KV{Verb: DeleteTree, Entry: Entry{Key: ""}})
		apply(t, replica, index+3, set("one more", "v"))
		apply(t, replica, index+4, KV{Verb: Delete, Entry: Entry{Key: "one more"}})
	}
	if !bytes.Equal(snapshotOf(t, s), snapshotOf(t, again)) {
		t.Error("a restored replica reaps other tombstones")
	}
}

// TestCountOfTombstonesStaysTrue compares the counter with the rows.
func TestCountOfTombstonesStaysTrue(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		g, s := newGenerator(seed), New()
		for index := uint64(1); index <= 200; index++ {
			_ = s.Apply(index, g.command(index))
			for a := ofTable; a < aspects; a++ {
				rows := list[indexRow](s.Snapshot().txn, tableIndex, "dead", []byte{byte(a)})
				if len(rows) != s.graves[a].count {
					t.Fatalf("seed %d, entry %d: %d tombstones of %s, counted %d", seed, index, len(rows), a, s.graves[a].count)
				}
			}
		}
	}
}

// TestNamesThatComeAndGoLeaveBoundedRows registers and removes ever new nodes
// with ever new services. Who blocks on the first of them, whose tombstone is
// reaped in the end, is woken: its index changed.
func TestNamesThatComeAndGoLeaveBoundedRows(t *testing.T) {
	t.Parallel()
	const each = 250
	s, ws := New(), WatchSet{}
	for i := range uint64(maxGraves/each + 3) {
		node := fmt.Sprintf("job-%d", i)
		r := Register{Node: Node{Name: node, Address: netip.MustParseAddr("10.1.0.1")}}
		for k := range each {
			name := fmt.Sprintf("%s-%d", node, k)
			r.Services = append(r.Services, Service{Name: name})
			r.Checks = append(r.Checks, Check{ID: name, ServiceID: name})
		}
		apply(t, s, 2*i+1, r)
		apply(t, s, 2*i+2, Deregister{Node: node})
		if i == 0 {
			s.Snapshot().Instances(ws, "job-0-0")
		}
		if reaped := (i+1)*each > maxGraves; (&watched{ws: ws}).fired() != reaped {
			t.Fatalf("after %d nodes: the tombstone is reaped: %v; its watch fired: %v", i+1, reaped, !reaped)
		}
	}
	if _, index := s.Snapshot().Instances(nil, "job-0-0"); index < 2 {
		t.Errorf("the index of a reaped name went back to %d", index)
	}
	rows := list[indexRow](s.Snapshot().txn, tableIndex, "id", nil)
	// Two aspects of each vanished service, three of the nodes, some tables.
	if most := 2*maxGraves + 100; len(rows) > most || len(rows) < 2*maxGraves {
		t.Errorf("%d index rows, more than %d or less than %d", len(rows), most, 2*maxGraves)
	}
}

// TestWatchersOfOthersSleep counts who wakes when one of many changes.
func TestWatchersOfOthersSleep(t *testing.T) {
	const n = 200
	s := New()
	var services []Service
	var checks []Check
	for i := range n {
		services = append(services, Service{Name: fmt.Sprintf("s%03d", i)})
		checks = append(checks, Check{ID: fmt.Sprintf("c%03d", i), ServiceID: fmt.Sprintf("s%03d", i)})
	}
	apply(t, s, 1, Register{Node: Node{Name: "n1", Address: netip.MustParseAddr("10.1.0.1")}, Services: services, Checks: checks})
	for i := range uint64(n) {
		apply(t, s, 2+i, set(fmt.Sprintf("d%03d/key", i), "v"))
	}
	var sets [4][n]WatchSet
	for i := range n {
		for k := range sets {
			sets[k][i] = WatchSet{}
		}
		s.Snapshot().Instances(sets[0][i], services[i].Name)
		s.Snapshot().ServiceChecks(sets[1][i], services[i].Name)
		s.Snapshot().Entry(sets[2][i], fmt.Sprintf("d%03d/key", i))
		s.Snapshot().Entries(sets[3][i], fmt.Sprintf("d%03d/", i))
	}
	apply(t, s, 1000, UpdateCheck{Node: "n1", Updates: []CheckState{{ID: "c007", Status: Passing}}})
	apply(t, s, 1001, set("d011/key", "w"))
	apply(t, s, 1002, set("d011/other", "w"))
	for k, want := range []int{7, 7, 11, 11} {
		for i := range n {
			if fired := (&watched{ws: sets[k][i]}).fired(); fired != (i == want) {
				t.Errorf("watch %d of kind %d fired: %v", i, k, fired)
			}
		}
	}
}

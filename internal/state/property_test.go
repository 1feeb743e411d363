package state

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// generator makes random commands over a universe so small that they meet.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) generator {
	return generator{rand.New(rand.NewPCG(seed, 0x5eed))}
}

func pick[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

// some returns each of its arguments with an even chance.
func some[T any](g generator, of ...T) []T {
	return slices.DeleteFunc(of, func(T) bool { return g.IntN(2) == 0 })
}

func (g generator) node() string    { return pick(g, "n1", "n2", "N2", "n3") }
func (g generator) service() string { return pick(g, "apt", "APT", "deb", "web") }
func (g generator) id() string      { return pick(g, "a", "b", "c") }
func (g generator) status() Status  { return pick(g, Passing, Warning, Critical) }
func (g generator) key() string {
	return pick(g, "a", "a/1", "a/2", "a/b/1", "a/b/2", "ab", "b/1", "c/d/e", "c/d/f", "z/1")
}

func (g generator) command(index uint64) Command {
	switch g.IntN(16) {
	case 0, 1, 2:
		return g.register()
	case 3:
		d := Deregister{Node: g.node(), NodeID: pick(g, "", "", "id-1")}
		if g.IntN(3) > 0 {
			d.Services, d.Checks = some(g, "a", "b", "c"), some(g, SerfHealth, "c1", "c2")
		}
		return d
	case 4, 5:
		u := UpdateCheck{Node: g.node()}
		for _, id := range some(g, SerfHealth, "c1", "c2", "c3") {
			u.Updates = append(u.Updates, CheckState{id, g.status(), pick(g, "", "up", "down")})
		}
		return u
	case 6, 7, 8, 9:
		e := Entry{Key: g.key(), Value: []byte(pick(g, "", "x", "y")), Flags: g.Uint64N(2), ModifyIndex: g.Uint64N(index)}
		verb := pick(g, Set, Set, CAS, Delete, DeleteCAS, DeleteTree)
		if verb == DeleteTree {
			e.Key = pick(g, "a/", "a", "c/", "nothing")
		}
		return KV{verb, e}
	case 10, 11, 12, 13:
		return g.locking(index)
	case 14:
		d := Document{Kind: pick(g, "k", "k/l"), Key: g.id(), Value: []byte(pick(g, "x", "y")), ModifyIndex: g.Uint64N(index)}
		return PutDocument{pick(g, Set, CAS, Delete, DeleteCAS), d}
	default:
		return SetCluster{Cluster{ID: "c", Name: "c", Feature: g.IntN(4)}}
	}
}

func (g generator) session() string { return pick(g, "s1", "s2", "s3") }

// locking makes a command about sessions and what they hold.
func (g generator) locking(index uint64) Command {
	switch g.IntN(8) {
	case 0, 1, 2:
		return CreateSession{Session{ID: g.session(), Node: g.node(), NodeChecks: some(g, SerfHealth), ServiceChecks: some(g, "c1"),
			Behavior: pick(g, "", BehaviorRelease, BehaviorDelete), LockDelay: pick[time.Duration](g, 0, time.Second)}}
	case 3:
		return DestroySession{ID: g.session(), RenewIndex: pick(g, 0, g.Uint64N(index))}
	case 4:
		return RenewSession{ID: g.session()}
	case 5:
		return EndDelay{Key: g.key(), Index: g.Uint64N(index)}
	default:
		e := Entry{Key: g.key(), Value: []byte(pick(g, "x", "y")), Session: g.session()}
		op := KV{pick(g, Acquire, Acquire, Release), e}
		if g.IntN(3) > 0 {
			return op
		}
		return Transact{[]KV{{Verb: pick(g, GetOrEmpty, CheckSession, CheckNotExists), Entry: e}, op, {Verb: GetTree, Entry: Entry{Key: "a/"}}}}
	}
}

func (g generator) register() Register {
	r := Register{Node: Node{Name: g.node(), ID: pick(g, "", "id-1", "id-2"), Address: netip.AddrFrom4([4]byte{10, 1, 0, byte(g.IntN(3))})}}
	for _, id := range some(g, "a", "b", "c") {
		r.Services = append(r.Services, Service{ID: id, Name: g.service(), Tags: some(g, "x", "y"), Port: uint16(g.IntN(2))})
	}
	for _, id := range some(g, SerfHealth, "c1", "c2") {
		c := Check{ID: id, Status: g.status()}
		if id != SerfHealth && g.IntN(4) > 0 {
			c.ServiceID = g.id()
		}
		r.Checks = append(r.Checks, c)
	}
	return r
}

func (g generator) members() []Member {
	var members []Member
	for _, name := range some(g, "n1", "n2", "n3") {
		members = append(members, Member{Name: name, Liveness: pick(g, Alive, Alive, Leaving, Left, Failed)})
	}
	return members
}

// universe is every query about what the generator can make.
func universe(t *testing.T) []line {
	queries := []string{"nodes", "names", "checks", "checks passing", "checks warning", "checks critical",
		"sessions", "instances other", "node other", "entry other", "document k other", "documents other"}
	for _, n := range []string{"n1", "n2", "n3"} {
		queries = append(queries, "node "+n, "node-services "+n, "node-checks "+n, "node-sessions "+n)
	}
	for _, s := range []string{"apt", "deb", "web"} {
		queries = append(queries, "instances "+s, "service-checks "+s)
	}
	for _, k := range []string{"a", "a/1", "a/2", "a/b/1", "a/b/2", "ab", "b/1", "c/d/e", "c/d/f", "z/1"} {
		queries = append(queries, "entry "+k)
	}
	for _, p := range []string{"", "a", "a/", "a/b/", "c/", "c/d/", "c/d/e", "nothing/"} {
		queries = append(queries, "entries "+p)
	}
	for _, id := range []string{"s1", "s2", "s3", "other"} {
		queries = append(queries, "session "+id)
	}
	for _, k := range []string{"k", "k/l"} {
		queries = append(queries, "documents "+k, "document "+k+" a", "document "+k+" b")
	}
	var lines []line
	for _, q := range queries {
		lines = append(lines, parseLine(t, q))
	}
	return lines
}

// answered is what one query gave at one moment.
type answered struct {
	rows  []string
	index uint64
	ws    WatchSet
}

func askAll(t *testing.T, s *Snapshot, queries []line) map[string]answered {
	all := map[string]answered{}
	for _, q := range queries {
		a := answered{ws: WatchSet{}}
		a.rows, a.index = ask(t, s, a.ws, q)
		if q.verb == "node-services" || q.verb == "node-checks" {
			// That the node comes or goes is part of these answers.
			n, _ := s.Node(nil, q.word(0))
			a.rows = append(a.rows, fmt.Sprint(n != nil))
		}
		all[q.String()] = a
	}
	return all
}

// TestMain lets garbage pile up: most of what these tests do is to make it, and
// under the race detector collecting it takes a fifth of their time.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	m.Run()
}

// The properties, each for the run of commands that a seed makes. FuzzSeeds
// tries many more.

func TestIndexAndWatchMoveExactlyWithTheAnswer(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		indexAndWatchMoveExactly(t, seed)
	}
}

func TestReplicasAgree(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		replicasAgree(t, seed)
	}
}

func TestSinceNamesEverythingThatChanged(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		sinceNamesEverything(t, seed)
	}
}

func FuzzSeeds(f *testing.F) {
	f.Fuzz(func(t *testing.T, seed uint64) {
		indexAndWatchMoveExactly(t, seed)
		replicasAgree(t, seed)
		sinceNamesEverything(t, seed)
	})
}

// indexAndWatchMoveExactly holds every query to its promise under random
// commands: the index moves when, and only when, the answer does; the watch
// fires whenever it does and, for what exists, only then.
func indexAndWatchMoveExactly(t *testing.T, seed uint64) {
	queries := universe(t)
	g, s := newGenerator(seed), New()
	before := askAll(t, s.Snapshot(), queries)
	needless := 0
	for index := uint64(1); index <= 250; index++ {
		cmd := g.command(index)
		_ = s.Apply(index, cmd) // a refused command must change nothing
		after := askAll(t, s.Snapshot(), queries)
		for q, old := range before {
			needless += compareAnswers(t, fmt.Sprintf("seed %d, %d: %T %+v: %s", seed, index, cmd, cmd, q), index, old, after[q])
		}
		before = after
		if t.Failed() {
			return
		}
	}
	// About 50 watches in each of 250 steps; what does not exist may wake
	// needlessly now and then.
	if needless > 250 {
		t.Errorf("seed %d: %d watches fired for nothing", seed, needless)
	}
}

func compareAnswers(t *testing.T, what string, index uint64, old, now answered) (needless int) {
	fired := (&watched{ws: old.ws}).fired()
	moved := !slices.Equal(old.rows, now.rows)
	switch {
	case moved && now.index != index:
		t.Errorf("%s\nchanged from %q to %q, with index %d", what, old.rows, now.rows, now.index)
	case !moved && now.index != old.index:
		t.Errorf("%s\nstayed %q, with an index that went from %d to %d", what, now.rows, old.index, now.index)
	case moved && !fired:
		t.Errorf("%s\nchanged from %q to %q, with a silent watch", what, old.rows, now.rows)
	case fired && !moved:
		return 1
	}
	return 0
}

// replicasAgree gives the same log to two stores, one of which is restored from
// the other's snapshot now and then, and asks both everything.
func replicasAgree(t *testing.T, seed uint64) {
	g := newGenerator(seed)
	a, b := New(), New()
	for index := uint64(1); index <= 200; index++ {
		cmd := g.command(index)
		errA, errB := a.Apply(index, cmd), b.Apply(index, recode(t, cmd))
		if fmt.Sprint(errA) != fmt.Sprint(errB) {
			t.Fatalf("seed %d, entry %d: %v and %v", seed, index, errA, errB)
		}
		if g.IntN(20) != 0 {
			continue
		}
		bytesA, bytesB := snapshotOf(t, a), snapshotOf(t, b)
		if !bytes.Equal(bytesA, bytesB) {
			t.Fatalf("seed %d, entry %d: the snapshots differ", seed, index)
		}
		if g.IntN(2) == 0 {
			b = New()
		}
		if err := b.Restore(bytes.NewReader(bytesA)); err != nil {
			t.Fatalf("seed %d, entry %d: %v", seed, index, err)
		}
	}
	for _, q := range universe(t) {
		rowsA, indexA := ask(t, a.Snapshot(), nil, q)
		rowsB, indexB := ask(t, b.Snapshot(), nil, q)
		if d := cmp.Diff(rowsA, rowsB); d != "" || indexA != indexB {
			t.Errorf("seed %d: %s at index %d and %d:\n%s", seed, q, indexA, indexB, d)
		}
	}
}

func recode(t testing.TB, cmd Command) Command {
	t.Helper()
	b, err := Encode(cmd)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = 0xff // Decode must have kept nothing of it
	}
	return again
}

// sinceNamesEverything follows a store as a consumer does, by rebuilding only
// what Since names, and compares with a rebuild of everything.
func sinceNamesEverything(t *testing.T, seed uint64) {
	g, s := newGenerator(seed), New()
	compiled := map[Key]string{}
	var seen uint64
	for index := uint64(1); index <= 200; index++ {
		if g.IntN(8) == 0 {
			s.SetMembers(g.members())
		}
		_ = s.Apply(index, g.command(index))
		if g.IntN(3) != 0 {
			continue
		}
		snap := s.Snapshot()
		keys, ok := s.Since(seen)
		if !ok {
			t.Fatalf("seed %d: Since(%d) is not ok at %d", seed, seen, snap.Version())
		}
		for _, k := range keys {
			compiled[k] = compileKey(t, snap, k)
		}
		seen = snap.Version()
		for k, have := range compiled {
			if want := compileKey(t, snap, k); have != want {
				t.Fatalf("seed %d, entry %d: %v was left at %q and is %q", seed, index, k, have, want)
			}
		}
		if missing := uncompiled(snap, compiled); len(missing) > 0 {
			t.Fatalf("seed %d, entry %d: Since never named %v", seed, index, missing)
		}
	}
}

// compileKey stands for what a consumer makes of a key.
func compileKey(t *testing.T, s *Snapshot, k Key) string {
	q := map[Table]string{TableNode: "node ", TableService: "instances ", TableCheck: "node-checks ",
		TableKV: "entry ", TableCluster: "cluster "}[k.Table]
	switch k.Table {
	case TableMember:
		return fmt.Sprint(s.Member(k.Name))
	case TableSession:
		session, _ := s.Session(nil, k.Name)
		return fmt.Sprintf("%+v", session)
	case TableDelay:
		return fmt.Sprintf("%+v", delayOf(s, k.Name))
	case TableDocument:
		rows := append(show(documentsOf(s, "k"), showDocument), show(documentsOf(s, "k/l"), showDocument)...)
		return fmt.Sprint(slices.DeleteFunc(rows, func(r string) bool { return r[:len(k.Name)+1] != k.Name+"=" }))
	}
	rows, _ := ask(t, s, nil, parseLine(t, q+k.Name))
	return fmt.Sprint(rows)
}

func delayOf(s *Snapshot, key string) LockDelay {
	for _, d := range s.LockDelays() {
		if d.Key == key {
			return *d
		}
	}
	return LockDelay{}
}

func documentsOf(s *Snapshot, kind string) []*Document {
	rows, _ := s.Documents(nil, kind)
	return rows
}

// uncompiled lists what is in the snapshot and was never named.
func uncompiled(s *Snapshot, compiled map[Key]string) (missing []Key) {
	var all []Key
	nodes, _ := s.Nodes(nil)
	for _, n := range nodes {
		all = append(all, Key{TableNode, Fold(n.Name)})
	}
	names, _ := s.ServiceNames(nil)
	for n := range names {
		all = append(all, Key{TableService, Fold(n)})
	}
	checks, _ := s.Checks(nil, "")
	for _, c := range checks {
		all = append(all, Key{TableCheck, Fold(c.Node)})
	}
	entries, _ := s.Entries(nil, "")
	for _, e := range entries {
		all = append(all, Key{TableKV, e.Key})
	}
	sessions, _ := s.Sessions(nil)
	for _, session := range sessions {
		all = append(all, Key{TableSession, session.ID})
	}
	for _, d := range s.LockDelays() {
		all = append(all, Key{TableDelay, d.Key})
	}
	for _, m := range s.Members() {
		all = append(all, Key{TableMember, Fold(m.Name)})
	}
	for _, k := range all {
		if _, ok := compiled[k]; !ok {
			missing = append(missing, k)
		}
	}
	return missing
}

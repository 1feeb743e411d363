package discovery

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"holdfast/internal/check"
	"holdfast/internal/state"
)

var (
	address1 = netip.MustParseAddr("10.1.0.1")
	address2 = netip.MustParseAddr("10.1.0.2")
	node1    = state.Node{ID: "id-1", Name: "fbservice1", Address: address1, Meta: map[string]string{"rack": "a"}}
	apt      = state.Service{Node: "fbservice1", ID: "apt", Name: "apt", Port: 3142, Tags: []string{"http"}}
	aptCheck = state.Check{Node: "fbservice1", ID: "service:apt", Name: "apt", Status: state.Passing, Output: "ok", ServiceID: "apt", Type: "http"}
	nodeDisk = state.Check{Node: "fbservice1", ID: "disk", Name: "disk", Status: state.Passing, Type: "script"}
)

// catalog is a store that holds what the commands say.
func catalog(t *testing.T, commands ...state.Command) *state.Store {
	t.Helper()
	store := state.New()
	for i, c := range commands {
		if err := store.Apply(uint64(i)+1, c); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

func equalPlans(t *testing.T, got, want []state.Command) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

func changed[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

func TestDiff(t *testing.T) {
	full := state.Register{Node: node1, Services: []state.Service{apt}, Checks: []state.Check{aptCheck, nodeDisk}}
	mine := view{node: node1, services: []state.Service{apt}, checks: []localView{{Check: nodeDisk}, {Check: aptCheck}}}
	with := func(change func(*view)) view {
		v := mine
		v.services = append([]state.Service{}, mine.services...)
		v.checks = append([]localView{}, mine.checks...)
		change(&v)
		return v
	}
	tests := []struct {
		name    string
		catalog []state.Command
		local   view
		want    []state.Command
	}{
		{"nothing is there", nil, mine, []state.Command{
			state.Register{Node: node1, Services: []state.Service{apt}, Checks: []state.Check{nodeDisk, aptCheck}},
		}},
		{"a node without services", nil, view{node: node1}, []state.Command{state.Register{Node: node1}}},
		{"all is equal", []state.Command{full}, mine, nil},
		{"the leader's check is left alone", []state.Command{full, state.Register{Node: node1, Checks: []state.Check{{ID: state.SerfHealth, Status: state.Critical}}}}, mine, nil},
		{"another spelling of the node's name", []state.Command{changed(full, func(r *state.Register) {
			r.Node.Name = "FBservice1"
			r.Services = []state.Service{changed(apt, func(s *state.Service) { s.Node = "" })}
		})}, mine, nil},
		{"a transition takes the short path", []state.Command{full},
			with(func(v *view) { v.checks[1].Status, v.checks[1].Output = state.Critical, "refused" }),
			[]state.Command{state.UpdateCheck{Node: "fbservice1", Updates: []state.CheckState{{ID: "service:apt", Status: state.Critical, Output: "refused"}}}},
		},
		{"many transitions are one command", []state.Command{full},
			with(func(v *view) { v.checks[0].Status = state.Warning; v.checks[1].Status = state.Critical }),
			[]state.Command{state.UpdateCheck{Node: "fbservice1", Updates: []state.CheckState{
				{ID: "disk", Status: state.Warning}, {ID: "service:apt", Status: state.Critical, Output: "ok"},
			}}},
		},
		{"another output", []state.Command{full}, with(func(v *view) { v.checks[1].Output = "fine" }),
			[]state.Command{state.UpdateCheck{Node: "fbservice1", Updates: []state.CheckState{{ID: "service:apt", Status: state.Passing, Output: "fine"}}}},
		},
		{"an undetermined check leaves the catalog's state", []state.Command{full},
			with(func(v *view) {
				v.checks[1] = localView{Check: changed(aptCheck, func(c *state.Check) { c.Status, c.Output = state.Critical, "not probed yet" }), Undetermined: true}
			}), nil},
		{"an undetermined check that changed otherwise keeps it, too", []state.Command{full},
			with(func(v *view) {
				v.checks[1] = localView{Check: changed(aptCheck, func(c *state.Check) { c.Status, c.Notes = state.Critical, "new" }), Undetermined: true}
			}),
			[]state.Command{state.Register{Node: node1, Services: []state.Service{apt}, Checks: []state.Check{changed(aptCheck, func(c *state.Check) { c.Notes = "new" })}}},
		},
		{"a check that is not in the catalog brings its service", []state.Command{state.Register{Node: node1, Services: []state.Service{apt}}}, mine,
			[]state.Command{state.Register{Node: node1, Services: []state.Service{apt}, Checks: []state.Check{nodeDisk, aptCheck}}},
		},
		{"a changed service", []state.Command{full}, with(func(v *view) { v.services[0].Port = 80 }),
			[]state.Command{state.Register{Node: node1, Services: []state.Service{changed(apt, func(s *state.Service) { s.Port = 80 })}}},
		},
		{"a changed node", []state.Command{full}, with(func(v *view) { v.node.Address = address2 }),
			[]state.Command{state.Register{Node: changed(node1, func(n *state.Node) { n.Address = address2 })}},
		},
		{"a wiped node: first the new ID, then the old services go", []state.Command{full},
			view{node: changed(node1, func(n *state.Node) { n.ID = "id-new" })},
			[]state.Command{
				state.Register{Node: changed(node1, func(n *state.Node) { n.ID = "id-new" })},
				state.Deregister{Node: "fbservice1", NodeID: "id-new", Services: []string{"apt"}, Checks: []string{"disk"}},
			},
		},
		{"an unknown check of a service that stays", []state.Command{full, state.Register{Node: node1, Checks: []state.Check{{ID: "old", ServiceID: "apt"}}}}, mine,
			[]state.Command{state.Deregister{Node: "fbservice1", NodeID: "id-1", Checks: []string{"old"}}},
		},
		{"a transition comes before everything else", []state.Command{full},
			with(func(v *view) {
				v.checks[1].Status = state.Critical
				v.services = append(v.services, state.Service{ID: "new", Name: "new"})
				v.checks = v.checks[1:]
			}),
			[]state.Command{
				state.UpdateCheck{Node: "fbservice1", Updates: []state.CheckState{{ID: "service:apt", Status: state.Critical, Output: "ok"}}},
				state.Register{Node: node1, Services: []state.Service{{ID: "new", Name: "new"}}},
				state.Deregister{Node: "fbservice1", NodeID: "id-1", Checks: []string{"disk"}},
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := catalog(t, test.catalog...)
			equalPlans(t, diff(test.local, rowsOf(store.Snapshot(), "fbservice1")), test.want)
		})
	}
}

// Whatever the two sides hold: carrying out the plan makes them equal, and the
// next plan is empty; also when it is carried out in pieces.
func TestDiffConverges(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 100 {
		store := state.New()
		index := uint64(0)
		apply := func(c state.Command) {
			index++
			if err := store.Apply(index, c); err != nil {
				t.Fatalf("round %d: %+v: %v", round, c, err)
			}
		}
		if rng.IntN(4) > 0 {
			theirs := randomView(rng)
			for _, c := range diff(theirs, rows{}) {
				apply(c)
			}
			apply(state.Register{Node: theirs.node, Checks: []state.Check{serfCheck(state.Critical, "")}})
		}
		mine := randomView(rng)
		for _, c := range inPieces(diff(mine, rowsOf(store.Snapshot(), mine.node.Name)), 1+rng.IntN(4<<10)) {
			apply(c)
		}
		got := rowsOf(store.Snapshot(), mine.node.Name)
		if again := diff(mine, got); len(again) > 0 {
			t.Fatalf("round %d: the second plan is not empty: %+v", round, again)
		}
		services := len(mine.services)
		checks := len(mine.checks)
		if got.checks[state.SerfHealth] != nil {
			checks++
		}
		if len(got.services) != services || len(got.checks) != checks {
			t.Fatalf("round %d: %d services, %d checks in the catalog; want %d, %d", round, len(got.services), len(got.checks), services, checks)
		}
		for _, c := range mine.checks {
			if row := got.checks[c.ID]; !c.Undetermined && (row.Status != c.Status || row.Output != c.Output) {
				t.Fatalf("round %d: check %s is %s", round, c.ID, row.Status)
			}
		}
	}
}

// A node with more to say than one command may hold says it in several.
func TestNoPieceIsTooBigForTheStore(t *testing.T) {
	big := strings.Repeat("x", state.MaxOutput)
	v := view{node: node1}
	for i := range 10 {
		s := state.Service{ID: fmt.Sprint("s", i), Name: "s", Meta: map[string]string{}, Tags: slices.Repeat([]string{big[:200]}, 100)}
		for m := range 60 {
			s.Meta[fmt.Sprint(m)] = big[:500]
		}
		v.services = append(v.services, s)
		for j := range 60 {
			v.checks = append(v.checks, localView{Check: state.Check{ID: fmt.Sprint("c", i, "-", j), Name: "c", ServiceID: s.ID, Status: state.Warning, Output: big}})
		}
	}
	store := state.New()
	carryOut := func(plan []state.Command) (commands int) {
		for _, c := range inPieces(plan, maxPiece) {
			data, err := state.Encode(c)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > 2*maxPiece {
				t.Errorf("a piece has %d bytes", len(data))
			}
			if err := store.Apply(store.Snapshot().Index()+1, c); err != nil {
				t.Fatal(err)
			}
			commands++
		}
		return commands
	}
	if n := carryOut(diff(v, rows{})); n < 8 {
		t.Errorf("registered in %d commands", n)
	}
	for i := range v.checks {
		v.checks[i].Status = state.Critical
	}
	if n := carryOut(diff(v, rowsOf(store.Snapshot(), "fbservice1"))); n < 8 {
		t.Errorf("updated in %d commands", n)
	}
	if again := diff(v, rowsOf(store.Snapshot(), "fbservice1")); len(again) > 0 {
		t.Errorf("%d commands are still to do", len(again))
	}
}

func TestAServiceComesWithItsChecks(t *testing.T) {
	check := func(id, service string) state.Check { return state.Check{ID: id, ServiceID: service} }
	plan := []state.Command{state.Register{
		Node: node1, Services: []state.Service{{ID: "a"}, {ID: "b"}},
		Checks: []state.Check{check("a1", "a"), check("b1", "b"), check("n", ""), check("a2", "a")},
	}}
	room := 2*rowOverhead + rowOverhead + 100 // for a service with two checks
	equalPlans(t, inPieces(plan, room), []state.Command{
		state.Register{Node: node1, Services: []state.Service{{ID: "a"}}, Checks: []state.Check{check("a1", "a"), check("a2", "a")}},
		state.Register{Node: node1, Services: []state.Service{{ID: "b"}}, Checks: []state.Check{check("b1", "b"), check("n", "")}},
	})
	equalPlans(t, inPieces([]state.Command{state.Register{Node: node1}}, room), []state.Command{state.Register{Node: node1}})
}

func randomView(rng *rand.Rand) view {
	pick := func(from ...string) string { return from[rng.IntN(len(from))] }
	v := view{node: state.Node{ID: pick("id-1", "id-2"), Name: "fbservice1", Address: address1}}
	v.node.Meta = map[string]string{"m": pick("1", "2")}
	status := func() state.Status { return state.Status(pick("passing", "warning", "critical")) }
	add := func(id, service string) {
		if rng.IntN(3) == 0 {
			return
		}
		v.checks = append(v.checks, localView{
			Check: state.Check{
				ID: id, Name: pick("n1", "n2"), Status: status(), Output: pick("", "o"), ServiceID: service, Type: pick("tcp", "http"),
			},
			Undetermined: rng.IntN(4) == 0,
		})
	}
	for i := range 4 {
		id := fmt.Sprint("s", i)
		if rng.IntN(2) == 0 {
			continue
		}
		v.services = append(v.services, state.Service{ID: id, Name: pick("x", "y"), Port: uint16(rng.IntN(2)), Tags: []string{pick("t", "u")}})
		add("c"+id, id)
		add("d"+id, id)
	}
	add("node", "")
	return v
}

func TestReconcile(t *testing.T) {
	alive := func(name, id string, a netip.Addr) state.Member {
		return state.Member{Name: name, ID: id, Address: a, Liveness: state.Alive}
	}
	is := func(m state.Member, l state.Liveness) state.Member { m.Liveness = l; return m }
	m1, m2 := alive("fbservice1", "id-1", address1), alive("fbservice2", "id-2", address2)
	registered := func(n state.Node, s state.Status) state.Command {
		return state.Register{Node: n, Checks: []state.Check{serfCheck(s, "")}}
	}
	node2 := state.Node{ID: "id-2", Name: "fbservice2", Address: address2}
	update := func(node string, s state.Status, output string) state.Command {
		return state.UpdateCheck{Node: node, Updates: []state.CheckState{{ID: state.SerfHealth, Status: s, Output: output}}}
	}
	tests := []struct {
		name    string
		catalog []state.Command
		members []state.Member
		absent  map[string]absence
		want    []state.Command
	}{
		{"a new member is registered", nil, []state.Member{m1}, nil,
			[]state.Command{state.Register{Node: state.Node{ID: "id-1", Name: "fbservice1", Address: address1}, Checks: []state.Check{serfCheck(state.Passing, serfAlive)}}}},
		{"a member that failed before it was known is not", nil, []state.Member{is(m1, state.Failed), is(m2, state.Left)}, nil, nil},
		{"all is well", []state.Command{registered(node1, state.Passing)}, []state.Member{m1}, nil, nil},
		{"a node that registered itself gets its health, and keeps its metadata", []state.Command{state.Register{Node: node1}}, []state.Member{m1}, nil,
			[]state.Command{state.Register{Node: node1, Checks: []state.Check{serfCheck(state.Passing, serfAlive)}}}},
		{"a failure", []state.Command{registered(node1, state.Passing)}, []state.Member{is(m1, state.Failed)}, nil,
			[]state.Command{update("fbservice1", state.Critical, serfFailed)}},
		{"a failure is written once", []state.Command{registered(node1, state.Critical)}, []state.Member{is(m1, state.Failed)}, nil, nil},
		{"a return", []state.Command{registered(node1, state.Critical)}, []state.Member{m1}, nil,
			[]state.Command{update("fbservice1", state.Passing, serfAlive)}},
		{"leaving is waited for", []state.Command{registered(node1, state.Passing)}, []state.Member{is(m1, state.Leaving)}, nil, nil},
		{"left", []state.Command{registered(node1, state.Passing)}, []state.Member{is(m1, state.Left)}, nil,
			[]state.Command{state.Deregister{Node: "fbservice1", NodeID: "id-1"}}},
		{"left, but the row is another's", []state.Command{registered(changed(node1, func(n *state.Node) { n.ID = "id-new" }), state.Passing)},
			[]state.Member{is(m1, state.Left)}, nil, nil},
		{"a wiped node under its name", []state.Command{registered(node1, state.Critical)}, []state.Member{alive("fbservice1", "id-new", address1)}, nil,
			[]state.Command{state.Register{
				Node:   changed(node1, func(n *state.Node) { n.ID = "id-new" }),
				Checks: []state.Check{serfCheck(state.Passing, serfAlive)},
			}}},
		{"a renamed node leaves its old name at once", []state.Command{registered(node1, state.Passing)}, []state.Member{alive("fbservice9", "id-1", address1)}, nil,
			[]state.Command{
				state.Deregister{Node: "fbservice1", NodeID: "id-1"},
				state.Register{Node: state.Node{ID: "id-1", Name: "fbservice9", Address: address1}, Checks: []state.Check{serfCheck(state.Passing, serfAlive)}},
			}},
		{"names are compared without regard to case", []state.Command{registered(node1, state.Passing)},
			[]state.Member{alive("FBSERVICE1", "id-1", address1)}, nil, nil},
		{"a node from outside is left alone", []state.Command{state.Register{Node: state.Node{Name: "printer", Address: address2}}}, nil, nil, nil},
		{"absent for a moment", []state.Command{registered(node1, state.Passing)}, nil,
			map[string]absence{"id-1": {lasted: missingGrace - 1}}, nil},
		{"absent for longer", []state.Command{registered(node1, state.Passing)}, nil,
			map[string]absence{"id-1": {lasted: missingGrace}},
			[]state.Command{update("fbservice1", state.Critical, serfAbsent)}},
		{"absent for days", []state.Command{registered(node1, state.Critical)}, nil,
			map[string]absence{"id-1": {lasted: forgetAfter - 1}}, nil},
		{"absent for three days", []state.Command{registered(node1, state.Critical)}, nil,
			map[string]absence{"id-1": {lasted: forgetAfter}},
			[]state.Command{state.Deregister{Node: "fbservice1", NodeID: "id-1"}}},
		{"given up by the gossip", []state.Command{registered(node1, state.Critical)}, nil,
			map[string]absence{"id-1": {reaped: true}},
			[]state.Command{state.Deregister{Node: "fbservice1", NodeID: "id-1"}}},
		{"bad news first", []state.Command{registered(node1, state.Critical), registered(node2, state.Passing)},
			[]state.Member{m1, is(m2, state.Failed)}, nil,
			[]state.Command{update("fbservice2", state.Critical, serfFailed), update("fbservice1", state.Passing, serfAlive)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			store := catalog(t, test.catalog...)
			store.SetMembers(test.members)
			equalPlans(t, reconcile(store.Snapshot(), test.absent, missingGrace), test.want)
		})
	}
}

func TestAbsences(t *testing.T) {
	store := catalog(t,
		state.Register{Node: node1},
		state.Register{Node: state.Node{ID: "id-2", Name: "fbservice2", Address: address2}},
		state.Register{Node: state.Node{Name: "printer", Address: address2}},
	)
	m1 := state.Member{Name: "fbservice1", ID: "id-1", Address: address1, Liveness: state.Alive}
	m2 := state.Member{Name: "fbservice2", ID: "id-2", Address: address2, Liveness: state.Alive}
	failed := func(m state.Member) state.Member { m.Liveness = state.Failed; return m }
	a := newAbsences()
	start := time.Unix(0, 0)
	steps := []struct {
		at      time.Duration
		members []state.Member
		want    map[string]absence
	}{
		{0, []state.Member{m1}, map[string]absence{"id-2": {}}},
		{5 * time.Second, []state.Member{m1}, map[string]absence{"id-2": {lasted: 5 * time.Second}}},
		{6 * time.Second, []state.Member{m1, m2}, nil},
		{7 * time.Second, []state.Member{m1, failed(m2)}, nil},
		{8 * time.Second, []state.Member{m1}, map[string]absence{"id-2": {reaped: true}}},
		{9 * time.Second, []state.Member{m1}, map[string]absence{"id-2": {reaped: true, lasted: time.Second}}},
		{10 * time.Second, []state.Member{m1, m2}, nil},
		{11 * time.Second, []state.Member{m1}, map[string]absence{"id-2": {}}},
	}
	for _, step := range steps {
		store.SetMembers(step.members)
		got := a.observe(start.Add(step.at), store.Snapshot())
		if diff := cmp.Diff(step.want, got, cmp.AllowUnexported(absence{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("at %s (-want +got):\n%s", step.at, diff)
		}
	}
	if err := store.Apply(100, state.Deregister{Node: "fbservice2"}); err != nil {
		t.Fatal(err)
	}
	a.observe(start.Add(time.Hour), store.Snapshot())
	if len(a.since)+len(a.given)+len(a.gone) > 0 {
		t.Errorf("something is remembered of a node that is gone: %+v", a)
	}
}

func TestLocalRemembersWhatIsNotStored(t *testing.T) {
	l := newLocal(node1)
	l.set([]localService{{Service: apt}}, localChecks([]check.Definition{{ID: "c", ServiceID: "apt", TTL: time.Second}}, fromFile))
	at := time.Unix(100, 0)
	l.report(check.Report{ID: "c", Status: state.Passing, At: at, Transition: true})
	seen := l.view()
	l.report(check.Report{ID: "c", Status: state.Critical, At: at.Add(time.Second), Transition: true})
	if took := l.stored(seen, at.Add(2*time.Second)); len(took) != 0 {
		t.Errorf("an old state counts as stored: %v", took)
	}
	if took := l.stored(l.view(), at.Add(3*time.Second)); !cmp.Equal(took, []time.Duration{3 * time.Second}) {
		t.Errorf("stored after %v, want 3s since the first change", took)
	}
	if took := l.stored(l.view(), at.Add(4*time.Second)); len(took) != 0 {
		t.Errorf("stored twice: %v", took)
	}
	if l.report(check.Report{ID: "gone"}) {
		t.Error("a report of an unknown check was taken")
	}
}

func TestServicesExpire(t *testing.T) {
	l := newLocal(node1)
	d := func(service string) check.Definition {
		return check.Definition{ID: "c-" + service, ServiceID: service, TTL: time.Second, DeregisterAfter: time.Minute}
	}
	l.set(
		[]localService{{state.Service{ID: "api"}, fromAPI}, {state.Service{ID: "file"}, fromFile}},
		append(localChecks([]check.Definition{d("api")}, fromAPI), localChecks([]check.Definition{d("file")}, fromFile)...),
	)
	start := time.Unix(100, 0)
	if ids, next := l.expired(start.Add(time.Hour)); len(ids) != 0 || next != forgetAfter {
		t.Errorf("before any result: %v, %s", ids, next)
	}
	for _, id := range []string{"c-api", "c-file"} {
		l.report(check.Report{ID: id, Status: state.Critical, At: start, Transition: true})
	}
	if ids, next := l.expired(start.Add(59 * time.Second)); len(ids) != 0 || next != time.Second {
		t.Errorf("after 59 s: %v, next %s", ids, next)
	}
	if ids, _ := l.expired(start.Add(time.Minute)); !cmp.Equal(ids, []string{"api"}) {
		t.Errorf("after a minute: %v, want the API's", ids)
	}
	l.report(check.Report{ID: "c-api", Status: state.Warning, At: start, Transition: true})
	if ids, _ := l.expired(start.Add(time.Hour)); len(ids) != 0 {
		t.Errorf("after its recovery: %v", ids)
	}
}

package discovery

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/check"
	"holdfast/internal/state"
	"holdfast/lab/stall"
)

func withServices(c Config, services ...ServiceDefinition) Config {
	c.Services = services
	return c
}

func tcpService(name, address string) ServiceDefinition {
	return ServiceDefinition{
		Service: state.Service{ID: name, Name: name, Port: 1},
		Checks:  []check.Definition{{TCP: address, Interval: 100 * time.Millisecond, Timeout: time.Minute}}, // a slow machine is no failure
	}
}

// startTCP listens until the test ends.
func startTCP(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// A server that fails from one request on: the time from that answer to the
// row in the store.
func TestATransitionIsInTheStoreWithin100Milliseconds(t *testing.T) {
	var fail atomic.Bool
	var seen atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if fail.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			seen.CompareAndSwap(0, time.Now().UnixNano())
		}
	}))
	defer server.Close()
	b := newBed(t)
	b.lead("fbservice1")
	h := b.start(withServices(b.config(1), ServiceDefinition{
		Service: state.Service{Name: "apt", Port: 3142},
		Checks:  []check.Definition{{HTTP: server.URL, Interval: 100 * time.Millisecond, Timeout: time.Minute}},
	}))
	machine := stall.Test(t, "")
	for range 5 {
		fail.Store(false)
		h.awaitCheck("fbservice1", "service:apt", state.Passing)
		seen.Store(0)
		changed := h.store.Changed()
		fail.Store(true)
		for h.status("fbservice1", "service:apt") != state.Critical {
			<-changed
			changed = h.store.Changed()
		}
		from, to := time.Unix(0, seen.Load()), time.Now()
		t.Logf("in the store %s after the answer", to.Sub(from))
		if !raceEnabled {
			machine.Judge(t, "a transition", 100*time.Millisecond, from, to)
		}
	}
}

// Every check of a busy node changes at once: they share a few commands, and
// none waits for the others.
func TestManyTransitionsAreInTheStoreWithin100Milliseconds(t *testing.T) {
	b := newBed(t)
	b.lead("fbservice1")
	h := b.start(b.config(1))
	const many = 500
	checks := make([]check.Definition, many)
	for i := range checks {
		checks[i].TTL = time.Hour
	}
	if err := h.RegisterService(state.Service{Name: "jobs"}, checks); err != nil {
		t.Fatal(err)
	}
	ids := []string{}
	for _, c := range h.LocalChecks() {
		ids = append(ids, c.ID)
	}
	inStore := func(want state.Status) (n int) {
		for _, c := range rowsOf(h.store.Snapshot(), "fbservice1").checks {
			if c.ServiceID != "" && c.Status == want {
				n++
			}
		}
		return n
	}
	eventually(t, "the checks are in the store", func() bool { return inStore(state.Critical) == many })
	before := b.proposed(func(state.Command) bool { return true })
	machine := stall.Test(t, "")
	var last time.Time
	for _, id := range ids {
		last = time.Now()
		if err := h.UpdateTTL(id, state.Passing, "fine"); err != nil {
			t.Fatal(err)
		}
	}
	for inStore(state.Passing) != many {
		changed := h.store.Changed()
		if inStore(state.Passing) == many {
			break
		}
		<-changed
	}
	stored := time.Now()
	commands := b.proposed(func(state.Command) bool { return true }) - before
	t.Logf("the last of %d in the store after %s, in %d commands", many, stored.Sub(last), commands)
	if !raceEnabled {
		machine.Judge(t, "the last of many transitions", 100*time.Millisecond, last, stored)
	}
}

func TestWithoutALeaderTheLatestStateIsKeptAndWrittenLater(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	h := b.start(withServices(b.config(1), ServiceDefinition{
		Service: state.Service{Name: "job"},
		Checks:  []check.Definition{{TTL: time.Hour}},
	}))
	update := func(s state.Status, output string) {
		if err := h.UpdateTTL("service:job", s, output); err != nil {
			t.Fatal(err)
		}
	}
	update(state.Passing, "first")
	h.awaitCheck("fbservice1", "service:job", state.Passing)
	b.lead("")
	update(state.Critical, "second")
	update(state.Warning, "third")
	update(state.Critical, "fourth")
	failed := func() float64 { return counter(h, "holdfast_discovery_sync_runs_total", "error") }
	before := failed()
	// One may be under way, with what was the state when it began.
	eventually(t, "an attempt fails that knows the latest", func() bool { return failed() >= before+2 })
	if got := h.status("fbservice1", "service:job"); got != state.Passing {
		t.Errorf("the store says %s without a leader", got)
	}
	b.lead("fbservice1")
	h.awaitCheck("fbservice1", "service:job", state.Critical)
	if got := h.check("fbservice1", "service:job").Output; got != "fourth" {
		t.Errorf("output %q, want the latest", got)
	}
	for _, skipped := range []string{"second", "third"} {
		wrote := func(c state.Command) bool {
			u, ok := c.(state.UpdateCheck)
			return ok && u.Updates[0].Output == skipped
		}
		if n := b.proposed(wrote); n != 0 {
			t.Errorf("the %s state was written though it was over", skipped)
		}
	}
}

func TestARowThatSomebodyChangedIsPutRight(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	service := startTCP(t)
	h := b.start(withServices(b.config(1), tcpService("apt", service)))
	h.awaitCheck("fbservice1", "service:apt", state.Passing)
	propose := func(c state.Command) {
		if _, err := b.Propose(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	propose(state.Deregister{Node: "fbservice1", Services: []string{"apt"}})
	h.awaitCheck("fbservice1", "service:apt", state.Passing)
	propose(state.UpdateCheck{Node: "fbservice1", Updates: []state.CheckState{{ID: "service:apt", Status: state.Critical}}})
	h.awaitCheck("fbservice1", "service:apt", state.Passing)
	propose(state.Deregister{Node: "fbservice1"})
	h.awaitCheck("fbservice1", "service:apt", state.Passing)
	h.awaitCheck("fbservice1", state.SerfHealth, state.Passing)
	propose(state.Register{
		Node:     state.Node{Name: "fbservice1", Address: b.address(1)},
		Services: []state.Service{{ID: "strange", Name: "strange"}},
	})
	eventually(t, "the stranger is gone", func() bool {
		ids := h.serviceIDs("fbservice1")
		return len(ids) == 1 && ids[0] == "apt"
	})
}

func TestServicesOfTheFileComeAndGo(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	service := startTCP(t)
	h := b.start(withServices(b.config(1), tcpService("apt", service), tcpService("old", service)))
	h.awaitCheck("fbservice1", "service:apt", state.Passing)
	h.awaitCheck("fbservice1", "service:old", state.Passing)
	before := h.check("fbservice1", "service:apt").ModifyIndex
	if err := h.SetServices([]ServiceDefinition{tcpService("new", service), tcpService("apt", service)}); err != nil {
		t.Fatal(err)
	}
	h.awaitCheck("fbservice1", "service:new", state.Passing)
	h.awaitCheck("fbservice1", "service:old", "")
	if after := h.check("fbservice1", "service:apt"); after == nil || after.ModifyIndex != before {
		t.Errorf("the check that did not change was touched: %+v", after)
	}
	if err := h.SetServices([]ServiceDefinition{tcpService("a", service), tcpService("a", service)}); err == nil {
		t.Error("a service was defined twice")
	}
	if ids := h.serviceIDs("fbservice1"); len(ids) != 2 {
		t.Errorf("an error changed the services: %v", ids)
	}
}

func TestATTLExpiresIntoTheStore(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	h := b.start(b.config(1))
	err := h.RegisterService(state.Service{Name: "job"}, []check.Definition{{TTL: 500 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	speaks := func(s state.Status, output string) { // again and again, or it may expire before it is seen in the store
		t.Helper()
		eventually(t, "the store has it "+string(s), func() bool {
			if err := h.UpdateTTL("service:job", s, output); err != nil {
				t.Fatal(err)
			}
			return h.status("fbservice1", "service:job") == s
		})
	}
	speaks(state.Passing, "fine")
	h.awaitCheck("fbservice1", "service:job", state.Critical)
	speaks(state.Warning, "late")
}

func TestExternalNodesAreLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.lead("fbservice1")
	h := b.start(b.config(1))
	h.awaitCheck("fbservice1", state.SerfHealth, state.Passing)
	_, err := b.Propose(t.Context(), state.Register{Node: state.Node{Name: "printer", Address: b.address(99)}})
	if err != nil {
		t.Fatal(err)
	}
	// The leader has looked again once this is registered.
	h2 := b.start(b.config(2))
	h2.awaitCheck("fbservice2", state.SerfHealth, state.Passing)
	if n, _ := h.store.Snapshot().Node(nil, "printer"); n == nil || h.check("printer", state.SerfHealth) != nil {
		t.Errorf("the external node was touched: %+v", n)
	}
}

func TestANewLeaderReconcilesEverything(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h1, h2, h3 := b.start(b.config(1)), b.start(b.config(2)), b.start(b.config(3))
	for _, h := range []*host{h1, h2, h3} {
		h1.awaitMember(h.config.Node, state.Alive)
		h2.awaitMember(h.config.Node, state.Alive)
	}
	h3.stop()
	h2.awaitMember("fbservice3", state.Failed)
	b.lead("fbservice2")
	h1.awaitCheck("fbservice1", state.SerfHealth, state.Passing)
	h1.awaitCheck("fbservice2", state.SerfHealth, state.Passing)
	if got := h1.status("fbservice3", state.SerfHealth); got == state.Passing {
		t.Errorf("the failed node is %s", got)
	}
}

// counter sums a counter's series that have the label value.
func counter(h *host, name, label string) float64 {
	families, err := h.registry.Gather()
	if err != nil {
		return 0
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == label {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

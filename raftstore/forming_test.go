package raftstore

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func testDecree(n int) decree {
	return decree{
		ClusterID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n),
		Voters:    []founder{{Name: fmt.Sprint("fb", n), ID: fmt.Sprint("id", n), Address: fmt.Sprintf("127.0.0.1:%d", n)}},
	}
}

// formingWorld is some servers, a network that loses, repeats and reorders,
// and disks that keep what was written.
type formingWorld struct {
	rng        *rand.Rand
	electorate []string
	disks      map[string]acceptor  // what survives a crash
	acceptors  map[string]*acceptor // memory
	proposers  map[string]*proposer
	inflight   []formMessage
	decided    map[string]bool // cluster IDs that anybody took for decided
	proposals  int
	forgetful  bool // a mutant: promises are not written
}

type formMessage struct {
	from, to string
	req      formRequest
	reply    *formReply
}

func newFormingWorld(seed uint64, servers int) *formingWorld {
	w := &formingWorld{
		rng:       rand.New(rand.NewPCG(seed, 1)),
		disks:     map[string]acceptor{},
		acceptors: map[string]*acceptor{}, proposers: map[string]*proposer{}, decided: map[string]bool{},
	}
	for i := range servers {
		name := fmt.Sprintf("fb%d", i+1)
		w.electorate = append(w.electorate, name)
		w.acceptors[name] = &acceptor{}
		w.save(name)
	}
	return w
}

func (w *formingWorld) save(name string) {
	w.disks[name] = *w.acceptors[name] // decrees are never changed
}

func (w *formingWorld) crash(name string) {
	delete(w.proposers, name)
	a := w.disks[name]
	w.acceptors[name] = &a
}

// propose starts an attempt as the shell does: the own promise first.
func (w *formingWorld) propose(name string) {
	a := w.acceptors[name]
	if a.Decided != nil {
		return
	}
	round := a.Promised.Round
	if p := w.proposers[name]; p != nil {
		round = max(round, p.highest)
	}
	w.proposals++
	p := newProposer(w.electorate, ballot{round + 1, name}, testDecree(w.proposals))
	w.proposers[name] = p
	w.answer(formMessage{from: name, to: name, req: p.request()})
	w.broadcast(name)
}

func (w *formingWorld) broadcast(name string) {
	p := w.proposers[name]
	for _, to := range w.electorate {
		w.inflight = append(w.inflight, formMessage{from: name, to: to, req: p.request()})
	}
}

// answer lets the acceptor at m.to reply; the reply travels like any message.
func (w *formingWorld) answer(m formMessage) {
	a := w.acceptors[m.to]
	reply, changed := a.handle(w.electorate, m.req)
	if changed && !w.forgetful {
		w.save(m.to)
	}
	if a.Decided != nil {
		w.decided[a.Decided.ClusterID] = true
	}
	w.inflight = append(w.inflight, formMessage{from: m.to, to: m.from, req: m.req, reply: &reply})
}

func (w *formingWorld) deliver(m formMessage) {
	if m.reply == nil {
		w.answer(m)
		return
	}
	p := w.proposers[m.to]
	if p == nil {
		return
	}
	before := p.request()
	p.receive(m.from, m.req, *m.reply)
	if p.decided != nil {
		w.decided[p.decided.ClusterID] = true
	}
	if after := p.request(); after.Step != before.Step {
		w.broadcast(m.to)
	}
}

// step does one random thing.
func (w *formingWorld) step() {
	server := w.electorate[w.rng.IntN(len(w.electorate))]
	switch n := w.rng.IntN(100); {
	case n < 4:
		w.propose(server)
	case n < 7:
		w.crash(server)
	case len(w.inflight) == 0:
	default:
		i := w.rng.IntN(len(w.inflight))
		m := w.inflight[i]
		if n >= 20 { // otherwise the network keeps a copy
			w.inflight = slices.Delete(w.inflight, i, i+1)
		}
		if n < 85 {
			w.deliver(m)
		}
	}
}

func TestFormingNeverDecidesTwoStores(t *testing.T) {
	formed := 0
	for seed := range uint64(1500) {
		w := newFormingWorld(seed, 1+int(seed%5))
		for range 300 {
			w.step()
			if len(w.decided) > 1 {
				t.Fatalf("seed %d: two stores were decided: %v", seed, w.decided)
			}
		}
		formed += len(w.decided)
	}
	if formed < 500 {
		t.Fatalf("only %d of 1500 worlds formed a store: the test has lost its teeth", formed)
	}
}

// The same worlds with disks that forget must go wrong, or the property above
// proves nothing.
func TestFormingNeedsDisksThatRemember(t *testing.T) {
	for seed := range uint64(3000) {
		w := newFormingWorld(seed, 3)
		w.forgetful = true
		for range 300 {
			w.step()
		}
		if len(w.decided) > 1 {
			return
		}
	}
	t.Fatal("servers that forget their promises never decided two stores")
}

func TestFormingSucceedsWhenMessagesFlow(t *testing.T) {
	for seed := range uint64(200) {
		w := newFormingWorld(seed, 1+int(seed%5))
		for range 200 { // chaos first
			w.step()
		}
		w.inflight = nil
		for _, server := range w.electorate {
			for attempt := 0; w.acceptors[server].Decided == nil; attempt++ {
				if attempt == 10 {
					t.Fatalf("seed %d: ten undisturbed attempts of %s decided nothing", seed, server)
				}
				w.propose(server)
				w.drain()
			}
		}
		if len(w.decided) != 1 {
			t.Fatalf("seed %d: decided %v", seed, w.decided)
		}
	}
}

// drain delivers everything, in order and without loss.
func (w *formingWorld) drain() {
	for len(w.inflight) > 0 {
		m := w.inflight[0]
		w.inflight = w.inflight[1:]
		w.deliver(m)
	}
}

func TestMinorityDecidesNothing(t *testing.T) {
	w := newFormingWorld(1, 4)
	p := newProposer(w.electorate, ballot{1, "fb1"}, testDecree(1))
	req := p.request()
	for _, from := range []string{"fb1", "fb2", "fb2", "stranger"} {
		p.receive(from, req, formReply{OK: true})
	}
	if p.step != stepPrepare {
		t.Fatal("two of four servers, one of them twice, and a stranger were taken for a majority")
	}
}

func TestAcceptorRefusesAnotherListOfServers(t *testing.T) {
	ours := []string{"fb1", "fb2", "fb3"}
	a := &acceptor{}
	d := testDecree(1)
	for name, req := range map[string]formRequest{
		"another list":       {Step: stepPrepare, Electorate: []string{"fb1", "fb4", "fb5"}, Ballot: ballot{1, "fb1"}},
		"a stranger":         {Step: stepPrepare, Electorate: ours, Ballot: ballot{1, "fb9"}},
		"no decree":          {Step: stepAccept, Electorate: ours, Ballot: ballot{1, "fb1"}},
		"an unknown step":    {Step: "abdicate", Electorate: ours, Ballot: ballot{1, "fb1"}, Decree: &d},
		"an incomplete one":  {Step: stepAccept, Electorate: ours, Ballot: ballot{1, "fb1"}, Decree: &decree{ClusterID: d.ClusterID, Voters: []founder{{Name: "fb1"}}}},
		"learned with no ID": {Step: stepLearn, Electorate: ours, Ballot: ballot{1, "fb1"}, Decree: &decree{Voters: d.Voters}},
	} {
		if r, changed := a.handle(ours, req); r.OK || changed || r.Reason == "" {
			t.Errorf("%s: reply %+v, changed %v; want a refusal with a reason", name, r, changed)
		}
	}
	if _, changed := a.handle(ours, formRequest{Step: stepPrepare, Electorate: ours, Ballot: ballot{1, "fb1"}}); !changed {
		t.Fatal("a first promise changed nothing")
	}
	edited := []string{"fb1", "fb2"}
	if r, _ := a.handle(edited, formRequest{Step: stepPrepare, Electorate: edited, Ballot: ballot{2, "fb1"}}); r.OK {
		t.Error("the list of servers changed in the middle of the forming")
	}
}

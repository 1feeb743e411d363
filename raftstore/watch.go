package raftstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// tracker is what the engine remembers of the last looks.
type tracker struct {
	established atomic.Uint64                     // the term in which we lead and are up to date; 0 none
	addresses   atomic.Pointer[map[string]string] // where the gossip sees each server, by ID

	mu    sync.Mutex
	peers map[string]sighting // by server ID; only the leader fills it
}

// sighting is the last answer of a server to the leader.
type sighting struct {
	at     time.Time
	got    progress
	silent bool // it did not answer since

	upSince, goneSince time.Time // since when it has answered, or not, without a break; one is zero
}

func newTracker() *tracker {
	t := &tracker{peers: map[string]sighting{}}
	t.addresses.Store(&map[string]string{})
	return t
}

func (t *tracker) saw(id string, p progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	up := t.peers[id].upSince
	if up.IsZero() {
		up = time.Now()
	}
	t.peers[id] = sighting{at: time.Now(), got: p, upSince: up}
}

// missed notes that a server did not answer.
func (t *tracker) missed(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.peers[id]
	if s.goneSince.IsZero() {
		s.goneSince = time.Now()
	}
	s.silent, s.upSince = true, time.Time{}
	t.peers[id] = s
}

// sighting is what is known of a server; false while it has not answered yet.
func (t *tracker) sighting(id string) (sighting, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.peers[id]
	return s, !s.at.IsZero()
}

// forget empties the memory when the leadership ends.
func (t *tracker) forget() {
	t.established.Store(0)
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.peers)
}

// watch follows Raft until ctx ends: who leads, and what to tell the admin; it
// runs the leader's duties while this server leads.
func (e *engine) watch(ctx context.Context) {
	tick := time.NewTicker(e.store.times.tick)
	defer tick.Stop()
	duties := office{}
	defer duties.end()
	lonely := time.Now() // since when there is no leader
	for {
		e.notePlaces()
		leads, term := e.leads()
		if !leads || term != duties.term {
			duties.end()
		}
		if leads && !duties.held() {
			duties.begin(ctx, term, e.lead)
		}
		if e.look(leads, term) {
			lonely = time.Now()
		}
		e.judgeLeader(time.Since(lonely))
		e.store.forgetStranger()
		e.store.forgetDistrusted()
		select {
		case <-ctx.Done():
			return
		case <-e.observed:
		case <-tick.C:
		}
	}
}

// leads tells whether we lead, and in which term; the two belong together.
func (e *engine) leads() (bool, uint64) {
	term := e.raft.CurrentTerm()
	return e.raft.State() == raft.Leader && e.raft.CurrentTerm() == term, term
}

// office is the leader's duties during one term.
type office struct {
	term   uint64
	cancel context.CancelFunc
	done   chan struct{}
}

func (o *office) held() bool { return o.cancel != nil }

func (o *office) begin(ctx context.Context, term uint64, duties func(context.Context, uint64)) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	*o = office{term, cancel, done}
	go func() {
		defer close(done)
		duties(ctx, term)
	}()
}

func (o *office) end() {
	if o.held() {
		o.cancel()
		<-o.done
	}
	*o = office{}
}

// look publishes what Raft says now and tells whether there is a leader.
func (e *engine) look(leads bool, term uint64) bool {
	s := e.store
	address, id := e.raft.LeaderWithID()
	now := leadership{id: string(id), address: string(address), self: leads && e.tracker.established.Load() == term}
	if leads {
		now.id, now.address = s.config.NodeID, e.advertise
	}
	s.mu.Lock()
	before := s.leader
	s.mu.Unlock()
	s.setLeader(now)
	if before.id != now.id {
		e.tell(now, term)
	}
	e.measure(term)
	return now.id != ""
}

func (e *engine) tell(now leadership, term uint64) {
	if now.id == "" {
		e.store.log.Info("no leader", "term", term)
		return
	}
	e.store.log.Info("leader elected", "leader", e.store.nameOf(now.id), "address", now.address, "term", term)
}

func (e *engine) measure(term uint64) {
	m := e.store.metrics
	applied, _ := e.store.fsm.progress()
	m.term.Set(float64(term))
	m.commitIndex.Set(float64(e.raft.CommitIndex()))
	m.appliedIndex.Set(float64(applied))
	m.lastIndex.Set(float64(e.raft.LastIndex()))
	m.voters.Set(float64(e.voters()))
	if st, err := os.Stat(filepath.Join(e.store.config.dir(), logName)); err == nil {
		m.logBytes.Set(float64(st.Size()))
	}
}

// judgeLeader raises and clears the condition about a missing leader.
func (e *engine) judgeLeader(lonely time.Duration) {
	s := e.store
	if lonely < s.times.noLeader {
		s.board.Clear(conditionNoLeader)
		return
	}
	e.askWhy()
	s.board.Raise(conditionNoLeader, health.Error, fmt.Sprintf(
		"no leader: %s. Names and reads go on from what this server last knew; writes are refused", s.situation(e)))
}

// situation says why there is no leader, and what would help.
func (s *Store) situation(e *engine) string {
	alive := map[string]bool{foldName(s.config.Node): true}
	for _, m := range s.state.Snapshot().Members() {
		if m.Server && m.Liveness == state.Alive {
			alive[foldName(m.Name)] = true
		}
	}
	if e.record.get().ClusterID == "" {
		return s.unformed(e, alive)
	}
	var names, missing []string
	for _, server := range e.configuration().Servers {
		if server.Suffrage != raft.Voter {
			continue
		}
		name := s.nameOf(string(server.ID))
		if name == "" {
			name = string(server.Address)
		}
		names = append(names, name)
		if !alive[foldName(name)] {
			missing = append(missing, name)
		}
	}
	switch {
	case len(names) == 0:
		return "this server waits for the leader to take it into the store"
	case 2*(len(names)-len(missing)) <= len(names):
		return fmt.Sprintf("of the voters %s a majority must be up; down: %s; start them", strings.Join(names, ", "), strings.Join(missing, ", "))
	}
	return fmt.Sprintf("an election among %s is under way", strings.Join(names, ", "))
}

func (s *Store) unformed(e *engine, alive map[string]bool) string {
	for _, m := range s.state.Snapshot().Members() {
		if m.Server && m.ClusterID != "" {
			return fmt.Sprintf("this server is new and waits for the leader of store %s (known to %s) to take it in", m.ClusterID, m.Name)
		}
	}
	var seen []string
	for _, name := range s.config.Servers {
		if alive[foldName(name)] {
			seen = append(seen, name)
		}
	}
	if why := e.objection.Load(); why != nil && 2*len(seen) > len(s.config.Servers) {
		return fmt.Sprintf("the store is not formed yet: of the servers %s a majority is up, but does not agree; %s", strings.Join(s.config.Servers, ", "), *why)
	}
	return fmt.Sprintf("the store is not formed yet: of the servers %s a majority must be up; seen: %s; start the others",
		strings.Join(s.config.Servers, ", "), strings.Join(seen, ", "))
}

// lead is what the leader does during its term.
func (e *engine) lead(ctx context.Context, term uint64) {
	defer e.tracker.forget()
	if !e.establish(ctx, term) {
		return
	}
	e.introduceStore(ctx)
	var duties sync.WaitGroup
	defer duties.Wait()
	duties.Go(func() { e.verify(ctx) })
	e.manage(ctx)
}

// establish waits until everything that was committed before the term is in
// this server's state.
func (e *engine) establish(ctx context.Context, term uint64) bool {
	for {
		err := await(ctx, func() error { return e.raft.Barrier(e.store.times.hold).Error() })
		if err == nil && e.raft.CurrentTerm() == term {
			e.tracker.established.Store(term)
			e.poke()
			return true
		}
		if !sleep(ctx, e.store.times.tick) {
			return false
		}
	}
}

// poke makes watch look again.
func (e *engine) poke() {
	select {
	case e.observed <- raft.Observation{}:
	default: // it is about to look anyway
	}
}

// introduceStore writes the record about the store itself, once in its life.
func (e *engine) introduceStore(ctx context.Context) {
	s := e.store
	if s.state.Snapshot().Cluster() != nil {
		return
	}
	data, err := state.Encode(state.SetCluster{Cluster: state.Cluster{ID: e.record.get().ClusterID, Name: s.config.Cluster, Feature: state.BaseLevel}})
	if err == nil {
		_, err = s.proposeHere(ctx, data)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("the store's own record was not written; the next leader will", "error", err)
	}
}

// notePlaces remembers where the gossip sees the servers.
func (e *engine) notePlaces() {
	places := map[string]string{}
	for _, m := range e.store.state.Snapshot().Members() {
		if m.Server && m.ID != "" && m.RPC.IsValid() && m.Liveness == state.Alive {
			places[m.ID] = m.RPC.String()
		}
	}
	e.tracker.addresses.Store(&places)
}

// stranger raises the condition about a server that has another store.
func (s *Store) stranger(name, store string) {
	if name == "" {
		name = "a server"
	}
	now := time.Now()
	s.strangerAt.Store(&now)
	s.board.Raise(conditionOtherStore, health.Warning, fmt.Sprintf(
		"%s has store %s, this server has %s: they never mix. Wipe the data directory of the one whose content is not wanted", name, store, s.ClusterID()))
}

// strangerMemory is how long the condition about another store stands after
// its server was last heard of.
const strangerMemory = 5 * time.Minute

func (s *Store) forgetStranger() {
	if at := s.strangerAt.Load(); at != nil && time.Since(*at) > strangerMemory {
		s.strangerAt.CompareAndSwap(at, nil)
		s.board.Clear(conditionOtherStore)
	}
}

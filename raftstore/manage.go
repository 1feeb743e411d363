package raftstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
	"holdfast/internal/state"
)

// The shell around membership.go, run by the leader.

const (
	conditionRefused = "raftstore.server-refused"
	// caughtUp is how many entries a server may lack and still count as up to
	// date: it gets them while its vote is being written down.
	caughtUp = 64
)

// manage keeps the configuration as it should be until ctx ends.
func (e *engine) manage(ctx context.Context) {
	s := e.store
	defer s.board.Clear(conditionRefused)
	for {
		version := s.state.Snapshot().Version()
		e.poll(ctx)
		if e.manageOnce(ctx) {
			continue
		}
		if !e.pauseManaging(ctx, version) {
			return
		}
	}
}

// pauseManaging waits until the gossip is another than at version or it is
// time to look anyway; false when ctx ended.
func (e *engine) pauseManaging(ctx context.Context, version uint64) bool {
	limit := e.store.times.plan
	if e.unsettled() {
		limit = e.store.times.tick
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		changed := e.store.state.Changed()
		now := e.store.state.Snapshot().Version()
		if e.gossipChanged(version) {
			return true
		}
		version = now
		select {
		case <-changed:
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// gossipChanged tells it from the writes, which are many.
func (e *engine) gossipChanged(since uint64) bool {
	keys, ok := e.store.state.Since(since)
	return !ok || slices.ContainsFunc(keys, func(k state.Key) bool { return k.Table == state.TableMember })
}

// unsettled: a server waits to be promoted.
func (e *engine) unsettled() bool {
	servers := e.configuration().Servers
	return e.voters() < min(e.store.config.Voters, len(servers))
}

// manageOnce makes at most one change and tells whether to look again at once.
func (e *engine) manageOnce(ctx context.Context) bool {
	e.mayLead.Lock()
	defer e.mayLead.Unlock()
	v := e.view()
	if e.yieldForDisk(ctx, v) {
		return false
	}
	e.writeNames(ctx)
	next, problems := plan(v)
	e.tellProblems(problems)
	if next == nil {
		return false
	}
	err := e.apply(ctx, *next)
	if ctx.Err() != nil {
		return false
	}
	log := e.store.log.With("change", string(next.Kind), "server", next.Server.String(), "why", next.Why)
	if err != nil {
		log.Warn("membership not changed; trying again", "error", err)
		return false
	}
	log.Info("membership changed")
	return true
}

func (e *engine) tellProblems(problems []string) {
	if len(problems) == 0 {
		e.store.board.Clear(conditionRefused)
		return
	}
	e.store.board.Raise(conditionRefused, health.Warning, strings.Join(problems, "; "))
}

// view gathers what plan needs.
func (e *engine) view() view {
	s := e.store
	v := view{
		Self: s.config.NodeID, Store: e.record.get().ClusterID,
		Order: s.config.Servers, Voters: s.config.Voters,
		Servers: e.members(), Gossip: s.state.Snapshot().Members(),
		Reachable: map[string]bool{}, CaughtUp: map[string]bool{}, Unstable: map[string]bool{},
		Demoted: map[string]bool{}, Gone: map[string]time.Duration{}, Disks: map[string]fitness{}, Pilot: autopilot(s.state.Snapshot()),
	}
	v.Disks[v.Self], _ = e.disk.fitness()
	v.Level, v.Reads = s.state.Snapshot().Level(), map[string]int{v.Self: s.config.Feature}
	now := time.Now()
	term, commit := e.raft.CurrentTerm(), e.raft.CommitIndex()
	for _, server := range v.Servers {
		v.Demoted[server.ID] = serverNote(s.state.Snapshot(), server.ID).Demoted
		seen, ok := e.tracker.sighting(server.ID)
		if !seen.goneSince.IsZero() {
			v.Gone[server.ID] = now.Sub(seen.goneSince)
		}
		v.Unstable[server.ID] = server.ID != v.Self && (seen.upSince.IsZero() || now.Sub(seen.upSince) < v.Pilot.Stabilization)
		if !ok || seen.silent {
			continue
		}
		v.Reads[server.ID] = max(state.BaseLevel, seen.got.Level)
		if v.Reads[server.ID] < v.Level {
			continue // it answers, but can be given no more of the log
		}
		v.Reachable[server.ID], v.Disks[server.ID] = true, seen.got.Disk
		v.CaughtUp[server.ID] = seen.got.Term == term && seen.got.Leader == v.Self && seen.got.Applied+caughtUp >= commit
	}
	return v
}

// members is Raft's configuration with names.
func (e *engine) members() []member {
	var list []member
	for _, server := range e.configuration().Servers {
		list = append(list, member{
			ID: string(server.ID), Name: e.store.nameOf(string(server.ID)),
			Address: string(server.Address), Voter: server.Suffrage == raft.Voter,
		})
	}
	return list
}

// poll asks every other server how far it is.
func (e *engine) poll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.store.times.transport/2)
	defer cancel()
	var group sync.WaitGroup
	for _, server := range e.members() {
		if server.ID == e.store.config.NodeID {
			continue
		}
		group.Go(func() {
			p, err := e.askProgress(ctx, server)
			if err != nil {
				e.tracker.missed(server.ID)
				return
			}
			e.tracker.saw(server.ID, p)
		})
	}
	group.Wait()
}

// askProgress asks one server how far it is, and sees to it that it is that
// server that answers.
func (e *engine) askProgress(ctx context.Context, server member) (progress, error) {
	address := server.Address
	if now := e.store.addressOf(server.ID); now != "" {
		address = now
	}
	var p progress
	err := e.client.post(ctx, address, pathProgress, nil, &p)
	if err == nil && p.ID != server.ID {
		err = fmt.Errorf("at %s is server %s, not %v", address, p.ID, server)
	}
	return p, err
}

// progressHere answers poll and prove.
func (s *Store) progressHere() progress {
	p := progress{ID: s.config.NodeID, Trust: s.trustOf(), Level: s.config.Feature}
	e := s.engine.Load()
	if e == nil {
		return p
	}
	_, leader := e.raft.LeaderWithID()
	p.Run = e.run
	p.Term, p.LastIndex, p.Leader = e.raft.CurrentTerm(), e.raft.LastIndex(), string(leader)
	p.Applied = e.raft.AppliedIndex()
	p.Disk, _ = e.disk.fitness()
	if contact := e.raft.LastContact(); p.Leader != p.ID && !contact.IsZero() {
		p.Heard = time.Since(contact)
	}
	return p
}

// writeNames keeps the names of the configuration's servers, so that a later
// leader recognises a wiped node by the name of its old ID.
func (e *engine) writeNames(ctx context.Context) {
	snap := e.store.state.Snapshot()
	for _, server := range e.members() {
		note := serverNote(snap, server.ID)
		if server.Name != "" && note.Name != server.Name {
			note.Name = server.Name
			e.write(ctx, documentServerAs(server.ID, note))
		}
	}
}

// write proposes one of the leader's own notes.
func (e *engine) write(ctx context.Context, cmd state.Command) {
	data, err := state.Encode(cmd)
	if err == nil {
		_, err = e.store.proposeHere(ctx, data)
	}
	if err != nil && ctx.Err() == nil {
		e.store.log.Warn("a server's name was not written down; trying again", "error", err)
	}
}

// apply carries out one change and waits until it is committed. The caller
// holds mayLead.
func (e *engine) apply(ctx context.Context, c change) error {
	ctx, cancel := context.WithTimeout(ctx, e.store.times.outcome)
	defer cancel()
	id, address := raft.ServerID(c.Server.ID), raft.ServerAddress(c.Server.Address)
	wait := e.store.times.hold
	err := await(ctx, func() error {
		switch {
		case c.Kind == changeRemove:
			return e.raft.RemoveServer(id, 0, wait).Error()
		case c.Kind == changeDemote:
			return e.raft.DemoteVoter(id, 0, wait).Error()
		case c.Kind == changePromote || c.Kind == changeMove && c.Server.Voter:
			return e.raft.AddVoter(id, address, 0, wait).Error()
		}
		return e.raft.AddNonvoter(id, address, 0, wait).Error()
	})
	if err != nil {
		return fmt.Errorf("%s %v: %w", c.Kind, c.Server, err)
	}
	e.store.metrics.changes.WithLabelValues(string(c.Kind)).Inc()
	if c.Kind == changeRemove && !e.returns(c.Server.ID) {
		e.write(ctx, forgetServer(c.Server.ID))
	}
	return nil
}

// returns tells whether a server that is taken out will be taken in again under
// the same ID, as one is that moved: what an admin said of it holds on.
func (e *engine) returns(id string) bool {
	return slices.ContainsFunc(e.store.state.Snapshot().Members(), func(m state.Member) bool {
		return m.ID == id && m.Server && m.Liveness == state.Alive
	})
}

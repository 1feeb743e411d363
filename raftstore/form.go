package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/state"
)

// The shell around forming.go: whom the gossip shows, who begins, and what to
// do with what was decided.

// formStore returns when this server belongs to a store: it takes part in the
// forming of one, or is taken into one that exists.
func (e *engine) formStore(ctx context.Context) error {
	var since time.Time // since when a majority is up
	highest, attempts := uint64(0), 0
	for e.record.get().ClusterID == "" {
		changed := e.store.state.Changed()
		seen, other := e.founders()
		switch {
		case other != "" || 2*len(seen) <= len(e.store.config.Servers):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		}
		if !since.IsZero() && time.Since(since) >= e.turn(seen) {
			attempts++
			var err error
			if highest, err = e.attempt(ctx, seen, highest); err != nil {
				return err
			}
			// Somebody else may be at it: the more often, the longer the pause.
			jitter := rand.N(e.store.times.tick * time.Duration(min(attempts, 10)))
			sleep(ctx, jitter)
		}
		timer := time.NewTimer(e.store.times.tick / 2)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
	return nil
}

// takeUp goes on where an earlier Run stopped, perhaps between two steps.
func (e *engine) takeUp() error {
	if d := e.record.get().Forming.Decided; d != nil {
		return e.begin(*d)
	}
	return nil
}

// founders lists, in the order of the cluster file, the servers that could
// form a store now. other is a store that the gossip knows of already: also
// when its servers are down, a second one must not be formed beside it.
func (e *engine) founders() (seen []founder, other string) {
	c := e.store.config
	snap := e.store.state.Snapshot()
	for _, m := range snap.Members() {
		if m.Server && m.ClusterID != "" && m.Liveness != state.Left {
			return nil, m.ClusterID
		}
	}
	for _, name := range c.Servers {
		if foldName(name) == foldName(c.Node) {
			seen = append(seen, founder{c.Node, c.NodeID, e.advertise})
			continue
		}
		m, ok := snap.Member(name)
		if ok && m.Server && m.Liveness == state.Alive && m.ID != "" && m.RPC.IsValid() {
			seen = append(seen, founder{m.Name, m.ID, m.RPC.String()})
		}
	}
	return seen, ""
}

// turn is how long a majority must have been up before this server begins:
// the first in order at once (with a moment's grace for those who are late),
// each further one later, in case those before it can't.
func (e *engine) turn(seen []founder) time.Duration {
	var wait time.Duration
	if len(seen) < len(e.store.config.Servers) {
		wait = e.store.times.grace
	}
	position := slices.IndexFunc(seen, func(f founder) bool { return f.ID == e.store.config.NodeID })
	return wait + time.Duration(position)*e.store.times.patience
}

// attempt runs one ballot and returns the highest round it heard of.
func (e *engine) attempt(ctx context.Context, seen []founder, highest uint64) (uint64, error) {
	c := e.store.config
	own := decree{ClusterID: newUUID(), Voters: seen[:min(c.Voters, len(seen))]}
	round := max(e.record.get().Forming.Promised.Round, highest) + 1
	p := newProposer(electorateOf(c.Servers), ballot{round, foldName(c.Node)}, own)
	if !e.promiseFirst(p) {
		return p.highest, nil
	}
	for p.decided == nil && !p.outbid {
		before := p.request()
		e.ask(ctx, seen, p)
		if p.decided == nil && p.request().Step == before.Step {
			break // no majority answered
		}
	}
	if p.decided == nil {
		return p.highest, nil
	}
	learn := p.request()
	if _, err := e.store.formHere(learn); err != nil {
		return p.highest, err
	}
	e.ask(ctx, seen, p) // whom this does not reach, the leader will
	return p.highest, nil
}

// promiseFirst has this server promise a ballot, on its disk, before anybody else
// hears of it: after a crash its number would otherwise be used again, for another
// decree. false: it can't, and nothing may be asked.
func (e *engine) promiseFirst(p *proposer) bool {
	node, req := e.store.config.Node, p.request()
	reply, err := e.store.formHere(req)
	if err != nil {
		reply = formReply{Reason: err.Error()}
	}
	p.receive(foldName(node), req, reply)
	if !reply.OK && p.decided == nil {
		e.store.log.Debug("forming: no consent of our own", "reason", reply.Reason)
		e.objection.Store(new(node + ": " + reply.Reason))
		return false
	}
	return true
}

// ask puts the proposer's present request to all and gives it the answers.
func (e *engine) ask(ctx context.Context, seen []founder, p *proposer) {
	ctx, cancel := context.WithTimeout(ctx, e.store.times.transport)
	defer cancel()
	req := p.request()
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, f := range seen {
		group.Go(func() {
			reply, err := e.askOne(ctx, f, req)
			if err != nil {
				reply.Reason = err.Error()
			}
			if !reply.OK {
				e.store.log.Debug("forming: no consent", "server", f.Name, "step", req.Step, "reason", reply.Reason)
				e.objection.Store(new(f.Name + ": " + reply.Reason))
			}
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			p.receive(foldName(f.Name), req, reply)
		})
	}
	group.Wait()
}

func (e *engine) askOne(ctx context.Context, f founder, req formRequest) (formReply, error) {
	if f.ID == e.store.config.NodeID {
		return e.store.formHere(req)
	}
	var reply formReply
	err := e.client.post(ctx, f.Address, pathForm, jsonBody(req), &reply)
	return reply, err
}

// formHere is this server's part as an acceptor: what it promises is on disk
// before it answers.
func (s *Store) formHere(req formRequest) (formReply, error) {
	e := s.engine.Load()
	if e == nil {
		return formReply{}, errors.New("the store of this server is not running")
	}
	var reply formReply
	learned := false
	err := e.record.update(func(r *record) bool {
		if r.ClusterID != "" && r.Forming.Decided == nil {
			reply = formReply{Reason: fmt.Sprintf("%s was taken into store %s", s.config.Node, r.ClusterID)}
			return false
		}
		var changed bool
		reply, changed = r.Forming.handle(electorateOf(s.config.Servers), req)
		if changed && r.Forming.Decided != nil {
			r.ClusterID, learned = r.Forming.Decided.ClusterID, true
		}
		return changed
	})
	if err != nil {
		return formReply{}, err
	}
	if learned {
		s.tellFormed(*reply.Decided)
		err = e.begin(*reply.Decided)
		e.announce()
	}
	return reply, err
}

func (s *Store) tellFormed(d decree) {
	names := make([]string, len(d.Voters))
	for i, v := range d.Voters {
		names[i] = v.Name
	}
	s.log.Info("store formed", "store", d.ClusterID, "voters", strings.Join(names, " "))
}

// begin gives Raft its first configuration, the same on every first voter.
// Repeating it does nothing.
func (e *engine) begin(d decree) error {
	var c raft.Configuration
	ours := false
	for _, v := range d.Voters {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.ID), Address: raft.ServerAddress(v.Address)})
		ours = ours || v.ID == e.store.config.NodeID
	}
	if !ours {
		return nil
	}
	if e.raft.LastIndex() > 0 {
		return nil
	}
	err := e.raft.BootstrapCluster(c).Error()
	if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("begin the log of store %s: %w", d.ClusterID, err)
	}
	return nil
}

package raftstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"holdfast/internal/state"
)

// What an admin asks of the leader, beside operator.go.

// operation travels to the leader.
type operation struct {
	Kind   string     `json:"kind"` // one of the op constants
	Server string     `json:"server,omitempty"`
	Pilot  *Autopilot `json:"pilot,omitempty"`
	Raise  *int       `json:"raise,omitempty"` // to this feature level; 0: the highest that all read
}

const (
	opAdd     = "add-peer"
	opDemote  = "demote"
	opPromote = "promote"
	opVerify  = "verify"
	opLevel   = "feature-level" // raises when Raise is there; the answer is a LevelState
	opPilot   = "autopilot"     // sets when Pilot is there; the answer is a PilotState
)

// Peer is a server of the configuration as this node, which asked it, sees it.
type Peer struct {
	state.RaftServer
	Reachable bool          `json:"reachable"`
	Applied   uint64        `json:"applied_index"`
	Lag       uint64        `json:"lag"`                       // entries behind the longest log that was seen
	Heard     time.Duration `json:"heard_from_leader_ns"`      // how long ago it heard its leader; 0 of the leader itself
	Follows   string        `json:"follows,omitempty"`         // name of the leader it follows
	Demoted   bool          `json:"demoted_by_admin,omitzero"` // holdfast raft demote
	Run       string        `json:"run,omitempty"`             // another after every start of its store; "" it does not tell
	Level     int           `json:"feature_level,omitempty"`   // highest feature level it reads; 0: it does not answer
	Trust     *Trusted      `json:"trust,omitempty"`           // nil: plain text, or it does not tell
}

// Operation is what `holdfast raft` and `holdfast autopilot` ask for: "peers"
// (which any server answers, leader or not), "autopilot", and with write
// "add-peer", "demote", "promote" (args: server), "verify", "autopilot" (args:
// clean-up, dead-after, forget-after, min-quorum, stabilization) and
// "feature-level" (args: to), which without write tells the state. The answer is
// one of []Peer, PilotState, Verdict, LevelState and a sentence. What is refused
// is state.ErrInvalid with the reason.
func (s *Store) Operation(ctx context.Context, name string, args url.Values, write bool) (any, error) {
	if cmd, ok := futureOperation(name, args); ok && write {
		_, err := s.Propose(ctx, cmd)
		return "written", err
	}
	o := operation{Kind: name, Server: args.Get("server")}
	switch {
	case name == "peers" && !write:
		return s.Peers(ctx)
	case name == opPilot && write:
		pilot, err := changedPilot(autopilot(s.state.Snapshot()), args)
		if err != nil {
			return nil, err
		}
		o.Pilot = &pilot
	case name == opPilot:
	case name == opLevel:
		if write {
			to, err := raiseTo(args)
			if err != nil {
				return nil, err
			}
			o.Raise = &to
		}
	case !write || !slices.Contains([]string{opAdd, opDemote, opPromote, opVerify}, name):
		return nil, fmt.Errorf("%w: the store has no operation %q", state.ErrNotFound, name)
	case name != opVerify && o.Server == "":
		return nil, fmt.Errorf("%w: which server? Say its name or ID", state.ErrInvalid)
	}
	return s.operate(ctx, o)
}

// operate has the leader do it.
func (s *Store) operate(ctx context.Context, o operation) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, s.times.hold+2*s.times.outcome)
	defer cancel()
	var data json.RawMessage
	_, err := s.viaLeader(ctx, request{
		here: func(ctx context.Context) (_ uint64, err error) {
			data, err = s.operateHere(ctx, o)
			return 0, err
		},
		path: pathOperate, body: mustJSON(o), write: true, keep: func(a answer) { data = a.Data },
	})
	return data, err
}

// operateHere is the leader's part.
func (s *Store) operateHere(ctx context.Context, o operation) (json.RawMessage, error) {
	e, err := s.inOffice()
	if err != nil {
		return nil, err
	}
	if o.Kind == opVerify {
		v, err := e.verifyOnce(ctx)
		if err != nil {
			return nil, err
		}
		go e.heal(e.net.ending, v) // takes long; the answer tells that it is begun
		return mustJSON(v), nil
	}
	e.poll(ctx)
	e.mayLead.Lock()
	defer e.mayLead.Unlock()
	v := e.view()
	switch o.Kind {
	case opAdd:
		return e.addPeer(ctx, v, o.Server)
	case opDemote:
		return e.demotePeer(ctx, v, o.Server)
	case opPromote:
		return e.promotePeer(ctx, v, o.Server)
	case opPilot:
		return e.pilot(ctx, v, o.Pilot)
	case opLevel:
		return e.level(ctx, v, o.Raise)
	}
	return nil, fmt.Errorf("%w: the leader has no operation %q: it may be of an older version", state.ErrInvalid, o.Kind)
}

func done(format string, args ...any) (json.RawMessage, error) {
	return mustJSON(fmt.Sprintf(format, args...)), nil
}

// addPeer takes in a server that the gossip shows, and says why not. The
// leader does this by itself too, but tells nobody at once.
func (e *engine) addPeer(ctx context.Context, v view, server string) (json.RawMessage, error) {
	if m, err := e.find(v, server); err == nil {
		return nil, refuseRequest("%s is in the store already", m)
	}
	i := slices.IndexFunc(v.Gossip, func(m state.Member) bool {
		return m.Server && (m.ID == server || foldName(m.Name) == foldName(server) || m.RPC.String() == server)
	})
	if i < 0 {
		return nil, fmt.Errorf("%w: no server in the gossip has the name, ID or address %q: start its agent first", state.ErrNotFound, server)
	}
	m := v.Gossip[i]
	if m.Liveness != state.Alive || !m.RPC.IsValid() || m.ID == "" {
		return nil, refuseRequest("%s is %s in the gossip: start its agent first", m.Name, m.Liveness)
	}
	if why := v.refuses(m); why != "" {
		return nil, refuseRequest("%s", why)
	}
	next := member{ID: m.ID, Name: m.Name, Address: m.RPC.String()}
	if _, err := e.askProgress(ctx, next); err != nil {
		return nil, refuseRequest("%s does not answer the leader: %v", m.Name, err)
	}
	if err := e.carryOut(ctx, change{changeAdd, next, "an admin asked for it"}); err != nil {
		return nil, err
	}
	return done("%s is in the store; it gets a vote when it has caught up and one is free", m.Name)
}

// carryOut is apply for an admin: told, and with an error that they understand.
func (e *engine) carryOut(ctx context.Context, c change) error {
	if err := e.apply(ctx, c); err != nil {
		return changeError(err)
	}
	e.store.log.Info("membership changed", "change", string(c.Kind), "server", c.Server.String(), "why", c.Why)
	return nil
}

// demotePeer takes a vote, and sees to it that it is not given back.
func (e *engine) demotePeer(ctx context.Context, v view, server string) (json.RawMessage, error) {
	m, err := e.find(v, server)
	switch {
	case err != nil:
		return nil, err
	case m.ID == v.Self:
		return nil, refuseRequest("%s is the leader: transfer the leadership first (holdfast raft transfer-leader)", m.Name)
	case m.Voter && !v.safeWithout(m):
		return nil, refuseRequest("without %s the voters that are up would be no majority any more", m)
	}
	if err := e.note(ctx, m, true); err != nil {
		return nil, err
	}
	if m.Voter {
		if err := e.carryOut(ctx, change{changeDemote, m, "an admin asked for it"}); err != nil {
			return nil, err
		}
	}
	return done("%s has no vote and gets none until holdfast raft promote", m.Name)
}

// promotePeer lets a server have a vote again, and gives it one that is free.
func (e *engine) promotePeer(ctx context.Context, v view, server string) (json.RawMessage, error) {
	m, err := e.find(v, server)
	switch {
	case err != nil:
		return nil, err
	case m.Voter:
		return nil, refuseRequest("%s has a vote", m.Name)
	case v.rank(m.Name) == len(v.Order):
		return nil, refuseRequest("the cluster file does not list %s as a server", m.Name)
	case !v.Reachable[m.ID]:
		return nil, refuseRequest("%s does not answer: start its agent first", m.Name)
	case !v.CaughtUp[m.ID]:
		return nil, refuseRequest("%s has not caught up: wait until its lag is small (holdfast raft list-peers)", m.Name)
	}
	if voters := len(v.voters()); voters >= v.Voters && v.Demoted[m.ID] {
		if err := e.note(ctx, m, false); err != nil {
			return nil, err
		}
		return done("%s may have a vote again; now there are %d, as many as the cluster file asks for", m.Name, voters)
	} else if voters >= v.Voters {
		return nil, refuseRequest("there are %d voters, as many as the cluster file asks for: demote one first, or raise the role's voters", voters)
	}
	m.Voter = true
	if !v.quorum(append(v.voters(), m)) {
		return nil, refuseRequest("with %s the voters that are up would be no majority", m.Name)
	}
	if err := e.note(ctx, m, false); err != nil {
		return nil, err
	}
	if err := e.carryOut(ctx, change{changePromote, m, "an admin asked for it"}); err != nil {
		return nil, err
	}
	return done("%s has a vote", m.Name)
}

// note writes down whether an admin took a server's vote.
func (e *engine) note(ctx context.Context, m member, demoted bool) error {
	data, err := state.Encode(documentServerAs(m.ID, serverDocument{Name: m.Name, Demoted: demoted}))
	if err != nil {
		return err
	}
	_, err = e.store.proposeHere(ctx, data)
	return err
}

// pilot sets the settings, if any are given, and tells the state.
func (e *engine) pilot(ctx context.Context, v view, set *Autopilot) (json.RawMessage, error) {
	if set != nil {
		if err := set.Validate(); err != nil {
			return nil, err
		}
		data, err := state.Encode(documentSettings(*set))
		if err == nil {
			_, err = e.store.proposeHere(ctx, data)
		}
		if err != nil {
			return nil, err
		}
		v = e.view()
	}
	return mustJSON(pilotState(v)), nil
}

// changedPilot is a with the settings of args.
func changedPilot(a Autopilot, args url.Values) (Autopilot, error) {
	for key, values := range args {
		text := values[len(values)-1]
		var err error
		switch key {
		case "clean-up":
			a.CleanUp, err = strconv.ParseBool(text)
		case "dead-after":
			a.DeadAfter, err = time.ParseDuration(text)
		case "forget-after":
			a.ForgetAfter, err = time.ParseDuration(text)
		case "stabilization":
			a.Stabilization, err = time.ParseDuration(text)
		case "min-quorum":
			a.MinQuorum, err = strconv.Atoi(text)
		default:
			continue
		}
		if err != nil {
			return a, fmt.Errorf("%w: %s: %w", state.ErrInvalid, key, err)
		}
	}
	return a, a.Validate()
}

// Peers asks every server of the configuration how far it is. It needs no
// leader, and blocks no longer than a server that is away lets it: a second.
func (s *Store) Peers(ctx context.Context) ([]Peer, error) {
	e := s.engine.Load()
	if e == nil {
		return nil, fmt.Errorf("%w: the store of this server is not running", state.ErrNoLeader)
	}
	ctx, cancel := context.WithTimeout(ctx, s.times.transport/2)
	defer cancel()
	s.mu.Lock()
	leader := s.leader
	s.mu.Unlock()
	snap := s.state.Snapshot()
	members := e.members()
	peers := make([]Peer, len(members))
	var group sync.WaitGroup
	for i, m := range members {
		group.Go(func() {
			p := Peer{RaftServer: e.status(m, leader), Demoted: serverNote(snap, m.ID).Demoted}
			got, err := s.progressHere(), error(nil)
			if m.ID != s.config.NodeID {
				got, err = e.askProgress(ctx, m)
			}
			if p.Reachable = err == nil; p.Reachable {
				p.Known, p.LastIndex, p.Applied, p.Heard, p.Follows, p.Run = true, got.LastIndex, got.Applied, got.Heard, s.nameOf(got.Leader), got.Run
				p.Trust, p.Level = got.Trust, max(state.BaseLevel, got.Level)
			}
			peers[i] = p
		})
	}
	group.Wait()
	var last uint64
	for _, p := range peers {
		last = max(last, p.LastIndex)
	}
	for i := range peers {
		peers[i].Lag = last - peers[i].LastIndex
	}
	return peers, nil
}

package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/state"
)

// Autopilot is how the leader looks after the membership. It is kept in the
// store itself, the same for every leader.
type Autopilot struct {
	// CleanUp lets the leader take the vote of a server that is lost, and
	// forget it at last.
	CleanUp bool `json:"clean_up"`
	// DeadAfter is how long a voter must be gone, from the gossip and for the
	// leader without a break, to count as lost: then a warm server gets a vote
	// and the lost one's is taken. A new leader counts anew.
	DeadAfter time.Duration `json:"dead_after_ns"`
	// ForgetAfter is how long a server without a vote must be gone to be
	// taken out of the configuration.
	ForgetAfter time.Duration `json:"forget_after_ns"`
	// MinQuorum is how many voters must stay when a lost one's vote is taken
	// and there is no warm server for it.
	MinQuorum int `json:"min_quorum"`
	// Stabilization is how long a server must have answered without a break
	// before it gets a vote.
	Stabilization time.Duration `json:"stabilization_ns"`
}

// DefaultAutopilot is in force until somebody sets another.
func DefaultAutopilot() Autopilot {
	return Autopilot{CleanUp: true, DeadAfter: 10 * time.Minute, ForgetAfter: 72 * time.Hour, MinQuorum: 3, Stabilization: 2 * time.Second}
}

// Validate refuses, all at once, what can't be meant. What is lost must be told
// from what restarts, so the time to it has a lower bound.
func (a Autopilot) Validate() error {
	var errs []error
	between := func(what string, d, least, most time.Duration) {
		if d < least || d > most {
			errs = append(errs, fmt.Errorf("%w: %s %v: must be %v to %v", state.ErrInvalid, what, d, least, most))
		}
	}
	between("dead after", a.DeadAfter, 10*time.Second, 30*24*time.Hour)
	between("forget after", a.ForgetAfter, max(time.Minute, a.DeadAfter), 365*24*time.Hour)
	between("stabilization", a.Stabilization, 0, time.Hour)
	if a.MinQuorum < 1 || a.MinQuorum > 99 {
		errs = append(errs, fmt.Errorf("%w: minimum quorum %d: must be 1 to 99", state.ErrInvalid, a.MinQuorum))
	}
	return errors.Join(errs...)
}

const (
	documentAutopilot = "raftstore/autopilot"
	autopilotKey      = "settings"
)

// autopilot is what is in force; what can't be read is as good as not set.
func autopilot(snap *state.Snapshot) Autopilot {
	doc, _ := snap.Document(nil, documentAutopilot, autopilotKey)
	a := DefaultAutopilot()
	if doc == nil || json.Unmarshal(doc.Value, &a) != nil || a.Validate() != nil {
		return DefaultAutopilot()
	}
	return a
}

func documentSettings(a Autopilot) state.PutDocument {
	return state.PutDocument{Verb: state.Set, Document: state.Document{Kind: documentAutopilot, Key: autopilotKey, Value: mustJSON(a)}}
}

// replaceLost gives the vote of a server that is lost to a warm one: first the
// warm one gets a vote, then the lost one's is the one too many that balance
// takes. When nobody is warm, the vote goes only if enough voters stay. It
// keeps its place in the configuration, and a vote again when it is back.
func replaceLost(v view) *change {
	if !v.Pilot.CleanUp {
		return nil
	}
	for _, s := range v.voters() {
		if s.ID == v.Self || !v.lost(s, v.Pilot.DeadAfter) {
			continue
		}
		if ready := v.ready(); len(ready) > 0 && len(v.voters()) <= v.Voters {
			first := v.first(ready)
			first.Voter = true
			if v.quorum(append(v.voters(), first)) {
				return &change{changePromote, first, fmt.Sprintf("%s has been gone for %v, and this server is warm", s.Name, v.Gone[s.ID].Round(time.Second))}
			}
		}
		if len(v.voters())-1 >= v.Pilot.MinQuorum && v.safeWithout(s) {
			return &change{changeDemote, s, fmt.Sprintf("it has been gone for %v, and %d voters stay", v.Gone[s.ID].Round(time.Second), len(v.voters())-1)}
		}
	}
	return nil
}

// forgetLost takes out servers without a vote that are gone for good.
func forgetLost(v view) *change {
	for _, s := range v.Servers {
		if v.Pilot.CleanUp && !s.Voter && s.ID != v.Self && v.lost(s, v.Pilot.ForgetAfter) {
			return &change{changeRemove, s, fmt.Sprintf("it has been gone for %v and has no vote", v.Gone[s.ID].Round(time.Second))}
		}
	}
	return nil
}

// lost tells whether a server has been gone for so long: neither answers the
// leader nor is alive in the gossip. The gossip alone is not believed, and a
// connection that is cut is no death.
func (v view) lost(s member, after time.Duration) bool {
	gone, ok := v.Gone[s.ID]
	m, known := v.gossip(s.ID)
	return ok && gone >= after && !v.Reachable[s.ID] && (!known || m.Liveness != state.Alive)
}

// PilotState is the health of the membership as the leader sees it.
type PilotState struct {
	Healthy  bool          `json:"healthy"`  // all servers of the configuration are
	Voters   int           `json:"voters"`   // that there are
	Wanted   int           `json:"wanted"`   // that there should be
	Tolerate int           `json:"tolerate"` // how many more voters may fail before there is no majority
	Servers  []PilotServer `json:"servers"`
	Settings Autopilot     `json:"settings"`
	Level    LevelState    `json:"feature_level"`
}

// PilotServer is one server as the leader sees it.
type PilotServer struct {
	ID      string        `json:"id"`
	Name    string        `json:"name"`
	Voter   bool          `json:"voter"`
	Leader  bool          `json:"leader"`
	Healthy bool          `json:"healthy"` // answers and has all that is committed, but for the last moment
	Stable  bool          `json:"stable"`  // and has answered for the time of stabilization
	Demoted bool          `json:"demoted"` // an admin took its vote
	Gone    time.Duration `json:"gone_ns"` // how long it has not answered
}

// pilotState sums a view up.
func pilotState(v view) PilotState {
	st := PilotState{Healthy: true, Voters: len(v.voters()), Wanted: v.Voters, Settings: v.Pilot, Level: v.levels()}
	up := 0
	for _, s := range v.Servers {
		one := PilotServer{
			ID: s.ID, Name: s.Name, Voter: s.Voter, Leader: s.ID == v.Self,
			Healthy: s.ID == v.Self || v.Reachable[s.ID] && v.CaughtUp[s.ID], Stable: !v.Unstable[s.ID], Demoted: v.Demoted[s.ID], Gone: v.Gone[s.ID],
		}
		st.Healthy = st.Healthy && one.Healthy
		if one.Healthy && one.Voter {
			up++
		}
		st.Servers = append(st.Servers, one)
	}
	st.Tolerate = max(0, up-(st.Voters/2+1))
	slices.SortFunc(st.Servers, func(a, b PilotServer) int { return v.rank(a.Name) - v.rank(b.Name) })
	return st
}

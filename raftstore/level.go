package raftstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/state"
)

// Feature levels: which commands the servers of a store can read, and which may
// be written. The rule is in internal/state (level.go); here the servers tell
// each other what they read, refuse whom the log would be too new for, and raise
// the level when all can follow.

// LevelState is what `holdfast operator feature-level` shows.
type LevelState struct {
	Store    int            `json:"store"`            // the level of every command that is written
	Possible int            `json:"possible"`         // the highest that all servers read; 0: not all of them answer
	Reads    map[string]int `json:"reads"`            // by server name; those that answer
	Silent   []string       `json:"silent,omitempty"` // those that don't
}

// levels sums up what a view says about feature levels.
func (v view) levels() LevelState {
	st := LevelState{Store: v.Level, Reads: map[string]int{}}
	for _, s := range v.Servers {
		reads, ok := v.Reads[s.ID]
		if !ok {
			st.Silent = append(st.Silent, s.Name)
			continue
		}
		st.Reads[s.Name] = reads
		if st.Possible == 0 || reads < st.Possible {
			st.Possible = reads
		}
	}
	if len(st.Silent) > 0 {
		st.Possible = 0
	}
	return st
}

// raise is the level that the store gets when an admin asks for one (0: the
// highest possible), or why it can't. A server without a vote counts as one with
// a vote: it must apply the same log.
func (st LevelState) raise(to int) (int, error) {
	if len(st.Silent) > 0 {
		return 0, refuseRequest("%s does not answer, so that nobody knows what it reads: start it, or remove it (holdfast raft remove-peer)", strings.Join(st.Silent, ", "))
	}
	if to == 0 {
		to = st.Possible
	}
	switch {
	case to < st.Store:
		return 0, refuseRequest("the store is at feature level %d and can't go back to %d", st.Store, to)
	case to > st.Possible:
		var old []string
		for name, reads := range st.Reads {
			if reads < to {
				old = append(old, fmt.Sprintf("%s reads %d", name, reads))
			}
		}
		return 0, refuseRequest("not all servers read feature level %d: %s; install the new version there first", to, strings.Join(slices.Sorted(slices.Values(old)), "; "))
	}
	return to, nil
}

// outdated are the servers of the store whose program is too old for it.
func (v view) outdated() (problems []string) {
	for _, s := range v.Servers {
		if reads, ok := v.Reads[s.ID]; ok && reads < v.Level {
			problems = append(problems, fmt.Sprintf("%s gets nothing of the log: its program reads feature level %d and the store is at %d; install the version that the others run", s.Name, reads, v.Level))
		}
	}
	return problems
}

// level raises the store's level if that is asked for, and tells the state.
func (e *engine) level(ctx context.Context, v view, raise *int) (json.RawMessage, error) {
	st := v.levels()
	if raise == nil {
		return mustJSON(st), nil
	}
	to, err := st.raise(*raise)
	if err != nil {
		return nil, err
	}
	if to > st.Store {
		record := e.store.state.Snapshot().Cluster()
		if record == nil {
			return nil, refuseRequest("the store has just been formed: try again in a moment")
		}
		data, err := state.Encode(state.SetCluster{Cluster: state.Cluster{ID: record.ID, Name: record.Name, Feature: to}})
		if err == nil {
			_, err = e.store.proposeHere(ctx, data)
		}
		if err != nil {
			return nil, err
		}
		e.store.log.Info("feature level raised", "was", st.Store, "is", to)
	}
	return mustJSON(e.view().levels()), nil
}

func raiseTo(args url.Values) (int, error) {
	text := args.Get("to")
	if text == "" {
		return 0, nil
	}
	to, err := strconv.Atoi(text)
	if err != nil || to < 1 {
		return 0, fmt.Errorf("%w: feature level %q: must be a number from 1 on", state.ErrInvalid, text)
	}
	return to, nil
}

// levelsOf are this server's.
func (s *Store) levelsOf() levels {
	return levels{Reads: s.config.Feature, At: s.state.Snapshot().Level()}
}

// behind puts the levels behind an ID, for the greeting.
func (l levels) behind(id string) string {
	if l.Reads == 0 {
		return id
	}
	return fmt.Sprintf("%s reads=%d store=%d", id, l.Reads, l.At)
}

// cutLevels is the inverse. What behind would not write belongs to the ID: a
// server that says nothing has zero levels, and reads the first.
func cutLevels(text string) (id string, l levels) {
	id, rest, found := strings.Cut(text, " ")
	if !found {
		return text, levels{}
	}
	if n, err := fmt.Sscanf(rest, "reads=%d store=%d", &l.Reads, &l.At); err != nil || n != 2 || l.behind(id) != text {
		return text, levels{}
	}
	return id, l
}

// tooOld says which of two servers can't read the store of the other; "" neither.
func tooOld(a, b hello) string {
	for _, pair := range [][2]hello{{a, b}, {b, a}} {
		if old, ahead := pair[0], pair[1]; max(old.Reads, state.BaseLevel) < ahead.At {
			return fmt.Sprintf("the program of %s reads feature level %d, and the store, as %s has it, is at %d: install the version that the other servers run on %s",
				old.Name, max(old.Reads, state.BaseLevel), ahead.Name, ahead.At, old.Name)
		}
	}
	return ""
}

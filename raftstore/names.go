package raftstore

import (
	"encoding/json"

	"holdfast/internal/state"
)

// documentServer is the kind of the documents that remember which node a
// server ID belongs to: Raft knows only IDs and addresses, and the gossip
// forgets an ID when its node comes back wiped.
const documentServer = "raftstore/server"

type serverDocument struct {
	Name    string `json:"name"`
	Demoted bool   `json:"demoted,omitempty"` // by an admin: the leader gives it no vote
}

// nameOf gives the node name of a server; "" when nobody told it.
func (s *Store) nameOf(id string) string {
	if id == s.config.NodeID {
		return s.config.Node
	}
	snap := s.state.Snapshot()
	for _, m := range snap.Members() {
		if id != "" && m.ID == id {
			return m.Name
		}
	}
	if name := documented(snap, id); name != "" {
		return name
	}
	e := s.engine.Load()
	if e == nil || e.record == nil {
		return ""
	}
	if d := e.record.get().Forming.Decided; d != nil {
		for _, v := range d.Voters {
			if v.ID == id {
				return v.Name
			}
		}
	}
	return ""
}

// documented is the name that a leader wrote down.
func documented(snap *state.Snapshot, id string) string { return serverNote(snap, id).Name }

// serverNote is what leaders wrote down about a server.
func serverNote(snap *state.Snapshot, id string) serverDocument {
	doc, _ := snap.Document(nil, documentServer, id)
	var v serverDocument
	if doc == nil || json.Unmarshal(doc.Value, &v) != nil {
		return serverDocument{}
	}
	return v
}

// nameAt gives the name of the server at an address; "" when unknown.
func (s *Store) nameAt(address string) string {
	for _, m := range s.state.Snapshot().Members() {
		if m.Server && m.RPC.String() == address {
			return m.Name
		}
	}
	e := s.engine.Load()
	if e == nil {
		return ""
	}
	for _, server := range e.configuration().Servers {
		if string(server.Address) == address {
			return s.nameOf(string(server.ID))
		}
	}
	return ""
}

// addressOf is where the gossip sees a server now; "" when it does not.
func (s *Store) addressOf(id string) string {
	if e := s.engine.Load(); e != nil {
		return (*e.tracker.addresses.Load())[id]
	}
	return ""
}

// documentServerAs writes down what is to be known of a server.
func documentServerAs(id string, v serverDocument) state.PutDocument {
	return state.PutDocument{Verb: state.Set, Document: state.Document{Kind: documentServer, Key: id, Value: mustJSON(v)}}
}

// forgetServer takes the note about a server away.
func forgetServer(id string) state.PutDocument {
	return state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: documentServer, Key: id}}
}

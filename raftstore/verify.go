package raftstore

import (
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/state"
)

// The pure core of the comparison of the servers' states: after the same entry
// of the log all states are the same, bit by bit, or memory, disk or program of
// one of them is wrong.

const (
	conditionDisagree = "raftstore.disagreement"
	conditionRebuilt  = "raftstore.rebuilt"
)

// digest is what a server's state was after an entry of the log.
type digest struct {
	ID      string `json:"id"`      // of the server
	Index   uint64 `json:"index"`   // of the entry; 0: it has none
	Sum     string `json:"sum"`     // hex SHA-256 of the state's snapshot
	Version string `json:"version"` // of its program: others may write the same state otherwise
}

// Verdict is what a comparison of all servers' states showed.
type Verdict struct {
	Index    uint64          `json:"index"`              // the entry after which the states were compared
	Majority string          `json:"majority,omitempty"` // the state that a majority of the voters has, as hex SHA-256; "" none
	Servers  []ServerVerdict `json:"servers"`
}

// ServerVerdict is what became of one server.
type ServerVerdict struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Voter   bool   `json:"voter"`
	Sum     string `json:"sum,omitempty"` // "" unknown
	Verdict string `json:"verdict"`       // one of Agrees, Differs, Unknown
}

// What a ServerVerdict can be.
const (
	Agrees  = "agrees"
	Differs = "differs" // from the majority, or, when there is none, from some other
	Unknown = "unknown" // no answer, no state at that entry, or another version's
)

// compare judges the digests of the servers after entry index. A majority is
// one of all voters, those that did not answer included: what only a minority
// says proves nothing.
func compare(index uint64, servers []member, digests []digest) Verdict {
	type kind struct{ sum, version string }
	votes, voters, sums := map[kind]int{}, 0, map[kind]bool{}
	found := map[string]kind{}
	for _, d := range digests {
		if d.Index == index && d.Sum != "" {
			found[d.ID] = kind{d.Sum, d.Version}
			sums[found[d.ID]] = true
		}
	}
	for _, s := range servers {
		if s.Voter {
			voters++
			if k, ok := found[s.ID]; ok {
				votes[k]++
			}
		}
	}
	v := Verdict{Index: index}
	var ours kind
	for k, n := range votes {
		if 2*n > voters {
			ours, v.Majority = k, k.sum
		}
	}
	for _, s := range servers {
		k, ok := found[s.ID]
		one := ServerVerdict{ID: s.ID, Name: s.Name, Voter: s.Voter, Sum: k.sum, Verdict: Agrees}
		alone := func(o kind) bool { return o.version == k.version && o.sum != k.sum }
		switch {
		case !ok, v.Majority != "" && k.version != ours.version:
			one.Verdict = Unknown
		case v.Majority != "" && k != ours, v.Majority == "" && slices.ContainsFunc(keys(sums), alone):
			one.Verdict = Differs
		}
		v.Servers = append(v.Servers, one)
	}
	return v
}

func keys[K comparable](m map[K]bool) []K {
	list := make([]K, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	return list
}

// differing are the servers that have another state.
func (v Verdict) differing() []ServerVerdict {
	return slices.DeleteFunc(slices.Clone(v.Servers), func(s ServerVerdict) bool { return s.Verdict != Differs })
}

// of is one server's part of the verdict.
func (v Verdict) of(id string) string {
	i := slices.IndexFunc(v.Servers, func(s ServerVerdict) bool { return s.ID == id })
	if i < 0 {
		return Unknown
	}
	return v.Servers[i].Verdict
}

// Problem says what is wrong in a sentence; "" when no state differs.
func (v Verdict) Problem() string {
	var names, sums []string
	for _, s := range v.differing() {
		names = append(names, s.Name)
		sums = append(sums, fmt.Sprintf("%s %.12s", s.Name, s.Sum))
	}
	switch {
	case len(names) == 0:
		return ""
	case v.Majority == "":
		return fmt.Sprintf("the servers' states differ after entry %d (%s), and no majority of the voters has the same: nothing was touched. Find out which is right (holdfast snapshot save --stale on each), stop the others and wipe their data directories",
			v.Index, strings.Join(sums, ", "))
	}
	return fmt.Sprintf("after entry %d the state of %s is another than that of the majority (%.12s; %s): it is replaced by the majority's. Look at the memory and the disk of %s",
		v.Index, strings.Join(names, ", "), v.Majority, strings.Join(sums, ", "), strings.Join(names, ", "))
}

// documentVerify is the kind of the document whose writing is the mark in the
// log after which each server takes the digest of its state. Its content never
// changes: nobody who watches is woken.
const documentVerify = "raftstore/verify"

func verifyMark() state.PutDocument {
	return state.PutDocument{Verb: state.Set, Document: state.Document{Kind: documentVerify, Key: "mark", Value: []byte("1")}}
}

func isVerifyMark(cmd state.Command) bool {
	d, ok := cmd.(state.PutDocument)
	return ok && d.Document.Kind == documentVerify
}

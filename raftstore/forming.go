package raftstore

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// The pure core of forming a store: single-decree Paxos (Lamport, "Paxos Made
// Simple", 2001) among the servers of the cluster file. What they decide is
// the identity of the store and its first voters; once a majority of the
// servers has accepted one decree, no other can ever be decided, whatever is
// lost, delayed, repeated or restarted. Nothing here does I/O.

// decree is what the servers agree upon, once in the life of a store.
type decree struct {
	ClusterID string    `json:"cluster_id"`
	Voters    []founder `json:"voters"` // in the order of the cluster file
}

// founder is a first voter.
type founder struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Address string `json:"address"`
}

// ballot numbers an attempt; no two attempts ever share one, because a
// server's next is above all that it promised on disk.
type ballot struct {
	Round  uint64 `json:"round"`
	Server string `json:"server"`
}

func (b ballot) compare(o ballot) int {
	return cmp.Or(cmp.Compare(b.Round, o.Round), strings.Compare(b.Server, o.Server))
}

// step names what a request asks of an acceptor.
type step string

const (
	stepPrepare step = "prepare" // promise to ignore lower ballots
	stepAccept  step = "accept"  // take this decree unless promised higher
	stepLearn   step = "learn"   // this decree is decided
)

// formRequest is a message of a proposer.
type formRequest struct {
	Step       step     `json:"step"`
	Electorate []string `json:"electorate"` // whom majorities are counted among
	Ballot     ballot   `json:"ballot"`
	Decree     *decree  `json:"decree,omitempty"` // of accept and learn
}

// formReply is an acceptor's answer.
type formReply struct {
	OK         bool    `json:"ok"`
	Reason     string  `json:"reason,omitempty"` // why not OK, for the log
	Promised   ballot  `json:"promised"`
	AcceptedAt ballot  `json:"accepted_at"`
	Accepted   *decree `json:"accepted,omitempty"`
	Decided    *decree `json:"decided,omitempty"`
}

// acceptor is one server's memory of the forming. A changed acceptor must be
// safe on the disk before the reply that changed it is sent.
type acceptor struct {
	Electorate []string `json:"electorate,omitempty"` // fixed by the first promise
	Promised   ballot   `json:"promised"`
	AcceptedAt ballot   `json:"accepted_at"`
	Accepted   *decree  `json:"accepted,omitempty"`
	Decided    *decree  `json:"decided,omitempty"`
}

// handle answers a request. electorate is what this server's own cluster file
// says: majorities of different lists need not meet, so they never mix.
func (a *acceptor) handle(electorate []string, req formRequest) (reply formReply, changed bool) {
	if a.Decided != nil {
		return a.reply(true, ""), false
	}
	if reason := a.object(electorate, req); reason != "" {
		return a.reply(false, reason), false
	}
	switch req.Step {
	case stepLearn:
		a.Decided = req.Decree
		return a.reply(true, ""), true
	case stepPrepare:
		if req.Ballot.compare(a.Promised) < 0 {
			return a.reply(false, fmt.Sprintf("promised round %d of %s", a.Promised.Round, a.Promised.Server)), false
		}
		changed = a.Promised != req.Ballot || a.Electorate == nil
		a.Promised, a.Electorate = req.Ballot, req.Electorate
		return a.reply(true, ""), changed
	case stepAccept:
		if req.Ballot.compare(a.Promised) < 0 {
			return a.reply(false, fmt.Sprintf("promised round %d of %s", a.Promised.Round, a.Promised.Server)), false
		}
		a.Promised, a.AcceptedAt, a.Accepted, a.Electorate = req.Ballot, req.Ballot, req.Decree, req.Electorate
		return a.reply(true, ""), true
	}
	return a.reply(false, "unknown step"), false
}

// object says why a request cannot be considered at all; "" when it can.
func (a *acceptor) object(electorate []string, req formRequest) string {
	if !slices.Equal(req.Electorate, electorate) {
		return fmt.Sprintf("its cluster file lists the servers %v, ours lists %v", req.Electorate, electorate)
	}
	if a.Electorate != nil && !slices.Equal(a.Electorate, electorate) {
		return fmt.Sprintf("the forming began among %v, the cluster file now lists %v", a.Electorate, electorate)
	}
	if req.Step != stepPrepare {
		if err := req.Decree.validate(); err != nil {
			return err.Error()
		}
	}
	if req.Step != stepLearn && !slices.Contains(electorate, req.Ballot.Server) {
		return fmt.Sprintf("%q is not a server of the cluster file", req.Ballot.Server)
	}
	return ""
}

func (a *acceptor) reply(ok bool, reason string) formReply {
	return formReply{OK: ok, Reason: reason, Promised: a.Promised, AcceptedAt: a.AcceptedAt, Accepted: a.Accepted, Decided: a.Decided}
}

// validate tells whether a decree can be the beginning of a store.
func (d *decree) validate() error {
	if d == nil {
		return fmt.Errorf("the decree is missing")
	}
	if !validUUID(d.ClusterID) {
		return fmt.Errorf("cluster ID %q of the decree is not a UUID", d.ClusterID)
	}
	if len(d.Voters) == 0 {
		return fmt.Errorf("the decree names no voters")
	}
	seen := map[string]bool{}
	for _, v := range d.Voters {
		if v.Name == "" || v.ID == "" || v.Address == "" {
			return fmt.Errorf("a voter of the decree is incomplete: %+v", v)
		}
		for _, key := range []string{"name " + foldName(v.Name), "id " + v.ID, "address " + v.Address} {
			if seen[key] {
				return fmt.Errorf("two voters of the decree share the %s", key)
			}
			seen[key] = true
		}
	}
	return nil
}

// proposer runs one ballot. It begins by preparing, goes on to accepting, and
// ends decided or, when somebody was promised more, outbid.
type proposer struct {
	electorate []string
	ballot     ballot
	own        decree // proposed unless something may be decided already

	step     step
	votes    map[string]bool // who said OK in this step
	best     ballot          // of the accepted decree that the promises told
	proposal *decree
	decided  *decree
	outbid   bool
	highest  uint64 // the highest round anybody spoke of
}

func newProposer(electorate []string, b ballot, own decree) *proposer {
	return &proposer{electorate: electorate, ballot: b, own: own, step: stepPrepare, votes: map[string]bool{}, highest: b.Round}
}

// request is what to ask of every server now.
func (p *proposer) request() formRequest {
	if p.decided != nil {
		return formRequest{Step: stepLearn, Electorate: p.electorate, Ballot: p.ballot, Decree: p.decided}
	}
	return formRequest{Step: p.step, Electorate: p.electorate, Ballot: p.ballot, Decree: p.proposal}
}

// receive takes from's reply to an earlier request.
func (p *proposer) receive(from string, req formRequest, r formReply) {
	if p.decided != nil || !slices.Contains(p.electorate, from) {
		return
	}
	p.highest = max(p.highest, r.Promised.Round)
	if r.Decided != nil {
		p.decided = r.Decided
		return
	}
	if req.Step != p.step || req.Ballot != p.ballot {
		return // late
	}
	if !r.OK {
		p.outbid = p.outbid || r.Promised.compare(p.ballot) > 0
		return
	}
	p.votes[from] = true
	if p.step == stepPrepare && r.Accepted != nil && (p.proposal == nil || r.AcceptedAt.compare(p.best) > 0) {
		p.best, p.proposal = r.AcceptedAt, r.Accepted
	}
	if 2*len(p.votes) <= len(p.electorate) {
		return
	}
	if p.step == stepAccept {
		p.decided = p.proposal
		return
	}
	if p.proposal == nil {
		p.proposal = &p.own
	}
	p.step, p.votes = stepAccept, map[string]bool{}
}

// electorateOf is the canonical form of a list of servers.
func electorateOf(servers []string) []string {
	list := make([]string, len(servers))
	for i, s := range servers {
		list[i] = foldName(s)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// foldName makes names comparable: they are host names.
func foldName(s string) string { return strings.ToLower(s) }

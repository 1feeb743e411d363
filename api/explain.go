package api

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"holdfast/internal/state"
)

const explainPath = "/v1/holdfast/explain/"

// Explanation says why a service's name gives what it gives on this node.
type Explanation struct {
	Service   string          `json:"service"`
	Node      string          `json:"node"` // who says so
	Time      time.Time       `json:"time"`
	Replica   ReplicaStatus   `json:"replica"`
	Why       string          `json:"why"` // one sentence
	Instances []ExplainedOne  `json:"instances"`
	History   []ExplainedStep `json:"history"` // of all its checks, the latest first; what this node saw since its start
}

// ExplainedOne is one instance, and what put it in the answers or took it out.
type ExplainedOne struct {
	Node     string          `json:"node"`
	ID       string          `json:"id"`
	Address  string          `json:"address"`
	Port     uint16          `json:"port"`
	Answers  bool            `json:"answers"` // it is among the answers
	Why      string          `json:"why"`
	Liveness state.Liveness  `json:"liveness,omitempty"` // of its node by this node's gossip; "" for nodes without an agent
	Checks   []ExplainedTest `json:"checks"`
}

// ExplainedTest is the evidence of a check.
type ExplainedTest struct {
	ID     string       `json:"id"`
	Type   string       `json:"type,omitempty"`
	Status state.Status `json:"status"`
	Output string       `json:"output"`
	Since  *Since       `json:"since,omitempty"`
}

// ExplainedStep is a change of a check that this node saw.
type ExplainedStep struct {
	Time   time.Time    `json:"time"`
	Node   string       `json:"node"`
	Check  string       `json:"check"`
	From   state.Status `json:"from"`
	To     state.Status `json:"to"`
	Output string       `json:"output"`
}

const maxExplainedSteps = 50

func (s *Server) explain(c *call) error {
	snap := s.state.Snapshot()
	all, _ := snap.Instances(nil, c.rest)
	all = slices.DeleteFunc(slices.Clone(all), func(i state.Instance) bool { return !c.seesInstance(i) })
	if len(all) == 0 && s.unformed(snap) {
		return fault(http.StatusInternalServerError, "%s: the store is not formed yet, and this node knows of no service", noLeader)
	}
	if len(all) == 0 {
		return fault(http.StatusNotFound, "there is no service %.128q", c.rest)
	}
	return s.reply(c, s.explanation(snap, c.rest, all))
}

// unformed tells whether the store can't tell what there is: no leader was
// heard of since the start, and nothing of an earlier run is known.
func (s *Server) unformed(snap *state.Snapshot) bool {
	_, _, led := s.raft.Leader()
	_, confirmed := snap.Age(s.now())
	return !led && !confirmed
}

// explanation follows state.Snapshot.Healthy, which decides what is answered.
func (s *Server) explanation(snap *state.Snapshot, service string, all []state.Instance) Explanation {
	now := s.now()
	age, known := snap.Age(now)
	e := Explanation{
		Service: service, Node: s.config.Node, Time: now,
		Replica:   ReplicaStatus{Index: snap.Index(), Confirmed: known, Age: age.Seconds()},
		Instances: []ExplainedOne{}, History: []ExplainedStep{},
	}
	chosen := snap.Healthy(all, false)
	answers := map[string]bool{}
	for _, i := range chosen {
		answers[i.Node.Name+"/"+i.Service.ID] = true
	}
	over := newOverlay(snap)
	dead := 0 // that are answered all the same
	for _, i := range all {
		one := s.explainOne(over, i, answers[i.Node.Name+"/"+i.Service.ID])
		if _, down := over.down(i.Node.Name); down && one.Answers {
			dead++
		}
		e.Instances = append(e.Instances, one)
		for _, chk := range i.Checks {
			e.History = append(e.History, s.watch.checkHistory(chk.Node, chk.ID)...)
		}
	}
	slices.SortStableFunc(e.History, func(a, b ExplainedStep) int { return b.Time.Compare(a.Time) })
	e.History = slices.CompactFunc(e.History, func(a, b ExplainedStep) bool { return a == b }) // a node's own check, of several instances
	e.History = e.History[:min(len(e.History), maxExplainedSteps)]
	e.Why = fmt.Sprintf("%d of %d instances are answered: those without a critical check on nodes that live", len(chosen), len(all))
	switch {
	case len(chosen) == 0:
		e.Why = fmt.Sprintf("none of %d instances is answered: each has a critical check", len(all))
	case dead > 0:
		e.Why = fmt.Sprintf("%d of %d instances are answered though this node's gossip says that their nodes are gone: without them none would be left, and the catalog's word stands", len(chosen), len(all))
	}
	return e
}

// ExplainService is an explanation for who asks by another way than HTTP and
// may see everything; false: there is no such service.
func (s *Server) ExplainService(service string) (Explanation, bool) {
	snap := s.state.Snapshot()
	all, _ := snap.Instances(nil, service)
	if len(all) == 0 {
		return Explanation{}, false
	}
	return s.explanation(snap, service, all), true
}

// Headline is the explanation in one line.
func (e *Explanation) Headline() string {
	return fmt.Sprintf("%s, as %s answers it: %s", e.Service, e.Node, e.Why)
}

// Confirmation is how old what is explained may be, in one line.
func (e *Explanation) Confirmation() string {
	if !e.Replica.Confirmed {
		return "No leader has confirmed the copy of the catalog here since the start."
	}
	return fmt.Sprintf("The copy of the catalog here was confirmed %s ago.", time.Duration(e.Replica.Age*float64(time.Second)).Round(100*time.Millisecond))
}

// Lines is the explanation as text: what happened with times in UTC.
func (e *Explanation) Lines() []string {
	lines := []string{e.Headline(), e.Confirmation()}
	for i := range e.Instances {
		one := &e.Instances[i]
		answered := "answered"
		if !one.Answers {
			answered = "not answered"
		}
		lines = append(lines, fmt.Sprintf("%s %s: %s: %s", one.Node, net.JoinHostPort(one.Address, strconv.Itoa(int(one.Port))), answered, one.Why))
		for _, check := range one.Checks {
			since := ""
			if check.Since != nil && check.Since.Exact {
				since = " since " + check.Since.Time.UTC().Format(time.DateTime)
			}
			lines = append(lines, fmt.Sprintf("%s check %s is %s%s: %s", one.Node, check.ID, check.Status, since, check.Output))
		}
	}
	for _, step := range e.History {
		lines = append(lines, fmt.Sprintf("%s %s check %s: %s → %s: %s", step.Time.UTC().Format(time.DateTime), step.Node, step.Check, step.From, step.To, step.Output))
	}
	return lines
}

func (s *Server) explainOne(over *overlay, i state.Instance, answers bool) ExplainedOne {
	one := ExplainedOne{
		Node: i.Node.Name, ID: i.Service.ID, Address: addressText(i.Addr()), Port: i.Service.Port, Answers: answers, Checks: []ExplainedTest{},
	}
	if member, ok := over.snap.Member(i.Node.Name); ok {
		one.Liveness = member.Liveness
	}
	for _, chk := range i.Checks {
		one.Checks = append(one.Checks, ExplainedTest{
			ID: chk.ID, Type: chk.Type, Status: chk.Status, Output: evidence(chk), Since: s.checkSince(over.snap, chk),
		})
	}
	one.Why = "no check of it is critical"
	if len(i.Checks) == 0 {
		one.Why = "it has no check"
	}
	worst := slices.IndexFunc(i.Checks, func(c *state.Check) bool { return c.Status == state.Critical })
	why, down := over.down(i.Node.Name)
	switch {
	case worst >= 0:
		one.Why = fmt.Sprintf("check %s is critical: %s", i.Checks[worst].ID, i.Checks[worst].Output)
	case down && answers:
		one.Why = "its node is " + string(why) + " by this node's gossip, but no other is left"
	case down:
		one.Why = "its node is " + string(why) + " by this node's gossip"
	}
	return one
}

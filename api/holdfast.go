package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// Status is the answer of /v1/holdfast/status: everything that the one-screen
// status shows, as this node sees it, with or without a leader.
type Status struct {
	Cluster    string             `json:"cluster"`
	ClusterID  string             `json:"cluster_id,omitempty"` // "" until the store was formed
	Node       string             `json:"node"`                 // who says so
	Version    string             `json:"version"`
	Time       time.Time          `json:"time"`
	Leader     *LeaderStatus      `json:"leader"` // null: none is known
	Replica    ReplicaStatus      `json:"replica"`
	Raft       []state.RaftServer `json:"raft"`
	Members    []MemberStatus     `json:"members"`
	Services   []ServiceStatus    `json:"services"`
	Failing    []FailingCheck     `json:"failing"`
	Conditions []health.Condition `json:"conditions"` // of this node
	ConfigSum  string             `json:"config_sum"`
	ConfigSkew bool               `json:"config_skew"` // living members run different cluster files
}

// LeaderStatus is the leader that this node knows.
type LeaderStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
}

// ReplicaStatus is how fresh this node's state is.
type ReplicaStatus struct {
	Index     uint64  `json:"index"`
	Confirmed bool    `json:"confirmed"`   // a leader confirmed it at least once
	Age       float64 `json:"age_seconds"` // since then
}

// MemberStatus is one member of the gossip.
type MemberStatus struct {
	Name      string         `json:"name"`
	Address   string         `json:"address"`
	Liveness  state.Liveness `json:"liveness"`
	Since     *Since         `json:"since,omitempty"`
	Server    bool           `json:"server"`
	Version   string         `json:"version"`
	ConfigSum string         `json:"config_sum,omitempty"`
}

// Since is when something became as it is. The state knows no times: it is
// what this node saw, and without Exact it was so already when it began to look.
type Since struct {
	Time  time.Time `json:"time"`
	Exact bool      `json:"exact"`
}

// ServiceStatus is a service with its instances.
type ServiceStatus struct {
	Name      string           `json:"name"`
	Tags      []string         `json:"tags"`
	Passing   int              `json:"passing"`
	Instances []InstanceStatus `json:"instances"`
}

// InstanceStatus is one instance of a service.
type InstanceStatus struct {
	Node    string       `json:"node"`
	ID      string       `json:"id"`
	Address string       `json:"address"`
	Port    uint16       `json:"port"`
	Status  state.Status `json:"status"`
	Since   *Since       `json:"since,omitempty"`
}

// FailingCheck is a check that is not passing.
type FailingCheck struct {
	Node    string       `json:"node"`
	ID      string       `json:"id"`
	Name    string       `json:"name"`
	Service string       `json:"service,omitempty"`
	Status  state.Status `json:"status"`
	Output  string       `json:"output"`
	Since   *Since       `json:"since,omitempty"`
}

func (s *Server) holdfastStatus(c *call) error { return s.reply(c, s.status()) }

// Status is what /v1/holdfast/status answers. It never blocks.
func (s *Server) Status() Status { return s.status() }

func (s *Server) status() Status {
	snap := s.state.Snapshot()
	now := s.now()
	age, known := snap.Age(now)
	found := Status{
		Cluster: s.config.Datacenter, Node: s.config.Node, Version: s.config.Version, Time: now,
		Replica:    ReplicaStatus{Index: snap.Index(), Confirmed: known, Age: age.Seconds()},
		Raft:       list(s.raft.Status().Servers),
		Members:    s.memberStatuses(snap),
		Services:   s.serviceStatuses(snap),
		Failing:    s.failing(snap),
		Conditions: list(s.conditions()),
		ConfigSum:  s.file.ConfigStatus().Sum,
	}
	if record := snap.Cluster(); record != nil {
		found.ClusterID = record.ID
	}
	if name, address, ok := s.raft.Leader(); ok {
		found.Leader = &LeaderStatus{Name: name, Address: address.String()}
	}
	_, found.ConfigSkew = sums(found.Members)
	return found
}

func (s *Server) memberStatuses(snap *state.Snapshot) []MemberStatus {
	found := []MemberStatus{}
	for _, m := range snap.Members() {
		found = append(found, MemberStatus{
			Name: m.Name, Address: addressText(m.Address), Liveness: m.Liveness, Since: since(s.watch.memberSince(m.Name)),
			Server: m.Server, Version: m.Version, ConfigSum: m.ConfigSum,
		})
	}
	return found
}

func since(at time.Time, exact bool) *Since {
	if at.IsZero() {
		return nil
	}
	return &Since{Time: at, Exact: exact}
}

func (s *Server) serviceStatuses(snap *state.Snapshot) []ServiceStatus {
	names, _ := snap.ServiceNames(nil)
	found := []ServiceStatus{}
	for _, name := range sortedKeys(names) {
		all, _ := snap.Instances(nil, name)
		service := ServiceStatus{Name: name, Tags: list(names[name]), Instances: []InstanceStatus{}}
		for _, i := range newOverlay(snap).instances(all) {
			if i.Status() == state.Passing {
				service.Passing++
			}
			service.Instances = append(service.Instances, InstanceStatus{
				Node: i.Node.Name, ID: i.Service.ID, Address: addressText(i.Addr()), Port: i.Service.Port,
				Status: i.Status(), Since: s.instanceSince(snap, i),
			})
		}
		found = append(found, service)
	}
	return found
}

// instanceSince is when an instance's health became what it is: for one that
// passes, when the last of its checks began to; for another, when the first
// of those that make it so did.
func (s *Server) instanceSince(snap *state.Snapshot, i state.Instance) *Since {
	status := i.Status()
	var found *Since
	for _, chk := range i.Checks {
		if chk.Status != status {
			continue
		}
		seen := s.checkSince(snap, chk)
		later := seen != nil && found != nil && seen.Time.After(found.Time)
		if found == nil || (seen != nil && later == (status == state.Passing)) {
			found = seen
		}
	}
	return found
}

// checkSince is when a check became what the answer says. Where the gossip
// made it so and the catalog doesn't say it yet, it is when the gossip did.
func (s *Server) checkSince(snap *state.Snapshot, chk *state.Check) *Since {
	if chk.ID == state.SerfHealth && chk.Status == state.Critical {
		if _, down := newOverlay(snap).down(chk.Node); down {
			return since(s.watch.memberSince(chk.Node))
		}
	}
	return since(s.watch.checkSince(chk.Node, chk.ID))
}

func (s *Server) failing(snap *state.Snapshot) []FailingCheck {
	all, _, _ := checksIn(snap, nil, "")
	found := []FailingCheck{}
	for _, chk := range all {
		if chk.Status == state.Passing {
			continue
		}
		found = append(found, FailingCheck{
			Node: chk.Node, ID: chk.ID, Name: chk.Name, Service: chk.ServiceName,
			Status: chk.Status, Output: evidence(chk), Since: s.checkSince(snap, chk),
		})
	}
	return found
}

// sums lists who runs which cluster file, and tells whether living members
// differ.
func sums(members []MemberStatus) (byNode map[string]string, skew bool) {
	byNode = map[string]string{}
	living := map[string]bool{}
	for _, m := range members {
		if m.ConfigSum == "" {
			continue
		}
		byNode[m.Name] = m.ConfigSum
		if m.Liveness == state.Alive {
			living[m.ConfigSum] = true
		}
	}
	return byNode, len(living) > 1
}

func (s *Server) holdfastRaft(c *call) error {
	status := s.raft.Status()
	status.Servers = list(status.Servers)
	return s.reply(c, status)
}

func (s *Server) holdfastConditions(c *call) error {
	return s.reply(c, list(s.conditions()))
}

// ConfigReport is the answer of /v1/holdfast/config.
type ConfigReport struct {
	Node   string       `json:"node"`
	Config ConfigStatus `json:"config"`
	// Sums are the hashes of the cluster files that the members run, as they
	// gossip them; Skew tells that living members differ.
	Sums map[string]string `json:"sums"`
	Skew bool              `json:"skew"`
}

func (s *Server) holdfastConfig(c *call) error {
	byNode, skew := sums(s.memberStatuses(s.state.Snapshot()))
	return s.reply(c, ConfigReport{Node: s.config.Node, Config: s.file.ConfigStatus(), Sums: byNode, Skew: skew})
}

// reloadTimeout bounds a reload, whatever a part of the agent makes of it.
const reloadTimeout = 30 * time.Second

func (s *Server) holdfastReload(c *call) error {
	report, err := s.reload(c)
	if err != nil {
		return err
	}
	return s.reply(c, report)
}

// reload answers 400 for a file that is wrong: all of its mistakes are in the text.
func (s *Server) reload(c *call) (ReloadReport, error) {
	ctx, cancel := context.WithTimeout(c.Context(), reloadTimeout)
	defer cancel()
	report, err := s.file.ReloadConfig(ctx)
	var mistakes cluster.Errors
	if errors.As(err, &mistakes) {
		return report, fault(http.StatusBadRequest, "%s", mistakes.Error())
	}
	if err != nil {
		return report, fmt.Errorf("reload the cluster file: %w", err)
	}
	return report, nil
}

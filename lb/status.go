package lb

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"holdfast/internal/kernel/ipvs"
)

// Status is what a node's load balancer does and sees.
type Status struct {
	Node     string             `json:"node"`
	Directs  bool               `json:"directs"`
	Services []ServiceStatus    `json:"services"`
	Drains   map[string]Drain   `json:"drains,omitempty"`
	People   map[string]People  `json:"people,omitempty"` // of nodes that are drained
	Left     map[string]float64 `json:"left,omitempty"`   // connections to them that this node knows
	Remarks  []string           `json:"remarks,omitempty"`
}

// ServiceStatus is a virtual service with its real servers.
type ServiceStatus struct {
	Name      string         `json:"name"`
	VIP       string         `json:"vip"`
	Key       string         `json:"key"`
	Scheduler string         `json:"scheduler"`
	Persists  time.Duration  `json:"persists,omitempty"`
	Servers   []ServerStatus `json:"servers"`
}

// ServerStatus is a real server: what was planned, what the checks say, and
// what the kernel counts.
type ServerStatus struct {
	Node        string     `json:"node"`
	Addr        netip.Addr `json:"addr"`
	Weight      int        `json:"weight"`
	Listed      bool       `json:"listed"` // stands in the table
	Up          bool       `json:"up"`
	Drained     bool       `json:"drained,omitempty"`
	Active      uint32     `json:"active"`
	Inactive    uint32     `json:"inactive"`
	AtHome      uint32     `json:"at_home"` // persistence templates
	Connections uint64     `json:"connections"`
	BytesIn     uint64     `json:"bytes_in"`
}

// Status tells what this node's load balancer does now.
func (s *Service) Status() (Status, error) {
	plan := s.Plan()
	var counted []ipvs.Observed
	s.mu.Lock()
	owner, settings := s.owner, s.settings
	st := Status{Node: settings.Node, Directs: plan.Directs}
	for i := range settings.Services {
		st.Services = append(st.Services, s.planner.status(&settings.Services[i]))
	}
	s.mu.Unlock()
	for _, r := range plan.Remarks {
		st.Remarks = append(st.Remarks, r.Service+": "+r.Text)
	}
	if owner != nil {
		var err error
		if counted, err = owner.Ours(); err != nil {
			return st, err
		}
	}
	for i := range st.Services {
		st.Services[i].count(counted, plan)
	}
	s.addDrains(&st)
	return st, nil
}

// status is what is known of a service without the kernel.
func (p *Planner) status(v *VirtualService) ServiceStatus {
	st := ServiceStatus{Name: v.Name, VIP: v.VIP, Key: v.key().String(), Scheduler: v.Scheduler, Persists: v.Persistence}
	for _, r := range v.Servers {
		c := p.checks[probed{v.Name, r.Node}]
		st.Servers = append(st.Servers, ServerStatus{Node: r.Node, Addr: r.Addr, Up: c == nil || c.up, Drained: p.drained[r.Node]})
	}
	return st
}

// count adds what is planned and what the kernel has counted.
func (st *ServiceStatus) count(counted []ipvs.Observed, plan Plan) {
	for i := range st.Servers {
		r := &st.Servers[i]
		for _, v := range plan.Tables {
			if at := slices.IndexFunc(v.Servers, func(s ipvs.Server) bool { return s.Addr.Addr() == r.Addr }); at >= 0 && v.Key.String() == st.Key {
				r.Weight, r.Listed = v.Servers[at].Weight, true
			}
		}
		for _, o := range counted {
			if o.Key.String() != st.Key {
				continue
			}
			for j, s := range o.Servers {
				if s.Addr.Addr() == r.Addr {
					l := o.Loads[j]
					r.Active, r.Inactive, r.AtHome = l.Active, l.Inactive, l.Persistent
					r.Connections, r.BytesIn = l.Stats.Connections, l.Stats.BytesIn
				}
			}
		}
	}
}

// addDrains adds what the store says of drained nodes.
func (s *Service) addDrains(st *Status) {
	if s.deps.Store == nil {
		return
	}
	snap := s.deps.Store.Snapshot()
	st.Drains, st.People, st.Left = drains(snap), map[string]People{}, map[string]float64{}
	docs, _ := snap.Documents(nil, kindPeople)
	for _, d := range docs {
		var p People
		if _, drained := st.Drains[d.Key]; drained && json.Unmarshal(d.Value, &p) == nil {
			st.People[d.Key] = p
		}
	}
	for node := range st.Drains {
		for _, v := range st.Services {
			for _, r := range v.Servers {
				if r.Node == node {
					st.Left[node] += float64(r.Active)
				}
			}
		}
	}
}

// Empty tells whether nobody is on a drained node any more: no login that it
// has told of since the drain began, and no connection that this director has.
func (st *Status) Empty(node string) (empty bool, why string) {
	order, drained := st.Drains[node]
	p, told := st.People[node]
	switch {
	case !drained:
		return false, node + " is not drained"
	case !told || p.At.Before(order.Since):
		return false, node + " has not told yet who is logged in"
	case len(p.Logins) > 0:
		return false, fmt.Sprintf("%d logins on %s", len(p.Logins), node)
	case st.Left[node] > 0:
		return false, fmt.Sprintf("%.0f connections to %s", st.Left[node], node)
	}
	return true, "empty, safe to reboot"
}

// Sessions are the connections through this node's services, and who is at home
// where.
func (s *Service) Sessions() ([]Session, error) {
	all, err := readSessions()
	settings := s.current()
	mine := all[:0]
	for _, c := range all {
		for _, v := range settings.Services {
			for _, r := range v.Servers {
				if v.Addr == c.Virtual.Addr() && r.Addr == c.Server.Addr() {
					c.Node = r.Node
				}
			}
		}
		if c.Node != "" {
			mine = append(mine, c)
		}
	}
	return mine, err
}

// Explain tells where each service sends a client, and why.
func (s *Service) Explain(client netip.Addr) (story []string, err error) {
	st, err := s.Status()
	if err != nil {
		return nil, err
	}
	sessions, err := s.Sessions()
	if err != nil {
		return nil, err
	}
	if !st.Directs {
		story = append(story, st.Node+" does not direct; the node that holds the address does, and knows better")
	}
	settings := s.current()
	for i, v := range st.Services {
		story = append(story, v.explain(settings.Services[i], client, sessions)...)
	}
	return append(story, st.Remarks...), nil
}

func (st *ServiceStatus) explain(v VirtualService, client netip.Addr, sessions []Session) (story []string) {
	bits := cmp.Or(v.Granularity, client.BitLen())
	network, err := client.Prefix(min(bits, client.BitLen()))
	if err != nil {
		return nil
	}
	for _, c := range sessions {
		if c.Virtual.Addr() != v.Addr || v.Mark == 0 && c.Virtual.Port() != v.Port {
			continue
		}
		switch {
		case c.Template() && network.Contains(c.Client.Addr()):
			story = append(story, fmt.Sprintf("%s: %v is at home on %s for %v more after the last connection", v.Name, network, c.Node, c.Expires))
		case c.Client.Addr() == client:
			story = append(story, fmt.Sprintf("%s: the connection from port %d goes to %s (%s, %v)", v.Name, c.Client.Port(), c.Node, c.State, c.Expires))
		}
	}
	var takes, not []string
	for _, r := range st.Servers {
		switch {
		case r.Drained:
			not = append(not, r.Node+" (drained)")
		case !r.Up:
			not = append(not, r.Node+" (its check fails)")
		case r.Weight == 0:
			not = append(not, r.Node+" (weight 0)")
		default:
			takes = append(takes, fmt.Sprintf("%s (weight %d)", r.Node, r.Weight))
		}
	}
	text := fmt.Sprintf("%s: a new client goes to one of %s, by %s", v.Name, cmp.Or(strings.Join(takes, ", "), "none"), st.Scheduler)
	if len(not) > 0 {
		text += "; not to " + strings.Join(not, ", ")
	}
	return append(story, text)
}

package api

import (
	"net/http"
	"time"

	"holdfast/internal/state"
)

// serverHealth is what autopilot shows of a Raft server. What only the leader
// measures is left out elsewhere.
type serverHealth struct {
	ID, Name, Address string
	SerfStatus        string
	Version           string
	Leader            bool
	LastContact       string
	LastTerm          uint64
	LastIndex         uint64
	Healthy           bool
	Voter             bool
	StableSince       time.Time
}

// servers judges Raft's servers by the gossip and, on the leader, by how long
// ago and how far they followed.
func (s *Server) servers() (all []serverHealth, healthy bool, tolerance int) {
	status, snap, config := s.raft.Status(), s.state.Snapshot(), s.autopilotConfig()
	threshold, err := parseWait(string(config.LastContactThreshold))
	if err != nil {
		threshold = time.Second
	}
	voters, good := 0, 0
	healthy = true
	for _, server := range status.Servers {
		h := serverHealth{
			ID: server.ID, Name: server.Name, Address: server.Address, Leader: server.Leader, Voter: server.Voter,
			SerfStatus: "none", LastContact: "0s", LastTerm: status.Term, LastIndex: server.LastIndex,
		}
		if m, ok := snap.Member(server.Name); ok && server.Name != "" {
			h.SerfStatus, h.Version = string(m.Liveness), m.Version
			h.StableSince, _ = s.watch.memberSince(m.Name)
		}
		h.Healthy = h.SerfStatus == string(state.Alive)
		if server.Known {
			h.LastContact = server.LastContact.String()
			h.Healthy = h.Healthy && (server.Leader || server.LastContact <= threshold && server.LastIndex+config.MaxTrailingLogs >= status.LastIndex)
		}
		healthy = healthy && h.Healthy
		if server.Voter {
			voters++
			if h.Healthy {
				good++
			}
		}
		all = append(all, h)
	}
	return all, healthy, max(0, good-(voters/2+1))
}

// autopilotHealth answers 429 while a server is not healthy, as Consul does:
// monitors look at the status alone.
func (s *Server) autopilotHealth(c *call) error {
	all, healthy, tolerance := s.servers()
	if !healthy {
		c.w.Header().Set("Content-Type", "application/json")
		c.w.WriteHeader(http.StatusTooManyRequests)
	}
	return s.reply(c, struct {
		Healthy          bool
		FailureTolerance int
		Servers          []serverHealth
	}{healthy, tolerance, list(all)})
}

type autopilotServer struct {
	ID, Name, Address, NodeStatus, Version, LastContact string
	LastTerm, LastIndex                                 uint64
	Healthy                                             bool
	StableSince                                         time.Time
	ReadReplica                                         bool
	Status, NodeType                                    string
	Meta                                                map[string]string
}

func (s *Server) autopilotState(c *call) error {
	all, healthy, tolerance := s.servers()
	servers, voters, leader := map[string]autopilotServer{}, []string{}, ""
	for _, h := range all {
		kind, as := "voter", "voter"
		switch {
		case h.Leader:
			leader, as = h.ID, "leader"
		case !h.Voter:
			as = "non-voter"
		}
		if h.Voter {
			voters = append(voters, h.ID)
		}
		servers[h.ID] = autopilotServer{
			ID: h.ID, Name: h.Name, Address: h.Address, NodeStatus: h.SerfStatus, Version: h.Version, LastContact: h.LastContact,
			LastTerm: h.LastTerm, LastIndex: h.LastIndex, Healthy: h.Healthy, StableSince: h.StableSince, Status: as, NodeType: kind,
			Meta: map[string]string{},
		}
	}
	return s.reply(c, map[string]any{
		"Healthy": healthy, "FailureTolerance": tolerance, "OptimisticFailureTolerance": tolerance,
		"Servers": servers, "Leader": leader, "Voters": voters,
	})
}

package ntpproxy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/ntp"
)

const (
	// compareEvery is how often the nodes measure each other.
	compareEvery = 64 * time.Second
	// compareTimeout is for an answer; a way that is longer tells little.
	compareTimeout = time.Second
	// conditionDisagreement: the service nodes' clocks are apart.
	conditionDisagreement = "ntp.disagreement"
)

// peer is another service node that serves the time.
type peer struct {
	node string
	addr netip.AddrPort
}

// peersOf are the nodes of a cluster file that serve the time beside one.
func peersOf(file *cluster.File, node string) (list []peer) {
	for _, n := range file.Nodes {
		if role := file.Role(n.Role); n.Name != node && role != nil && slices.Contains(role.Run, "ntp") {
			list = append(list, peer{n.Name, netip.AddrPortFrom(n.Addresses[file.Main().Name], ntp.Port)})
		}
	}
	return list
}

// compare measures the other service nodes' clocks until ctx ends.
func (s *Server) compare(ctx context.Context) {
	var c council
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	defer s.board.Clear(conditionDisagreement)
	defer s.board.Clear(conditionLeapNodes)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		round := s.sight(ctx)
		if ctx.Err() != nil {
			return
		}
		if wrong := c.hear(round, s.settings.Load().agree); wrong != "" {
			s.board.Raise(conditionDisagreement, health.Error, wrong)
		} else {
			s.board.Clear(conditionDisagreement)
		}
	}
}

// Peer is what this node last saw of another service node, for an admin.
type Peer struct {
	Node    string        `json:"node"`
	Address string        `json:"address"`
	State   string        `json:"state"` // agrees, differs, unsynchronised, silent, or waiting for the first round
	Stratum uint8         `json:"stratum"`
	Source  string        `json:"source,omitempty"`
	Offset  time.Duration `json:"offset_ns"` // of it before this clock
	Delay   time.Duration `json:"delay_ns"`
}

// Peers tells how the other service nodes' clocks looked in the last round, or
// that there was none: a node that is not synchronised compares nothing.
func (s *Server) Peers() []Peer {
	list := []Peer{}
	if last := s.seen.Load(); last != nil {
		return append(list, *last...)
	}
	for _, p := range s.settings.Load().peers {
		list = append(list, Peer{Node: p.node, Address: p.addr.String(), State: "waiting"})
	}
	return list
}

// sight asks all other nodes at once. Those that don't answer or are not
// synchronised are left out: it is another's business to say so. A node that
// is not synchronised itself has nothing to compare.
func (s *Server) sight(ctx context.Context) (round []sighting) {
	shift, ok := s.policy.Load().smear.shift(s.now()) // they are asked by our clock, and serve what is smeared
	if !ok {
		return nil // the kernel steps our clock about now
	}
	s.metrics.offsets.Reset()
	if s.Standing().Stratum == 0 {
		s.seen.Store(nil)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	var mu sync.Mutex
	var group sync.WaitGroup
	set, mode := s.settings.Load(), s.leapMode()
	seen := make([]Peer, len(set.peers))
	var conflicts []string
	for i, p := range set.peers {
		seen[i] = Peer{Node: p.node, Address: p.addr.String(), State: "silent"}
		group.Go(func() {
			a, err := s.ask(ctx, p.addr.String())
			if err != nil {
				return
			}
			a.Offset -= time.Duration(shift)
			seen[i].State, seen[i].Offset, seen[i].Delay = "unsynchronised", a.Offset, a.Delay
			if !a.Synchronised() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if c := leapConflict(mode, p.node, a.Packet); c != "" {
				conflicts = append(conflicts, c)
			}
			s.metrics.offsets.WithLabelValues(p.node).Set(a.Offset.Seconds())
			one := sighting{p.node, a.Offset, a.Delay,
				fmt.Sprintf("stratum %d, below %v", a.Stratum, netip.AddrFrom4(a.ReferenceID))}
			round = append(round, one)
			seen[i].Stratum, seen[i].Source = a.Stratum, netip.AddrFrom4(a.ReferenceID).String()
			if seen[i].State = "agrees"; one.excess() > set.agree {
				seen[i].State = "differs"
			}
		})
	}
	group.Wait()
	if slices.Sort(conflicts); len(conflicts) > 0 {
		s.board.Raise(conditionLeapNodes, health.Error, fmt.Sprintf("ntp.leap.mode is %s here, but %s: it must be the same on all nodes", mode, strings.Join(conflicts, ", ")))
	} else {
		s.board.Clear(conditionLeapNodes)
	}
	s.seen.Store(&seen)
	return round
}

package ntpproxy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
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

// sight asks all other nodes at once. Those that don't answer or are not
// synchronised are left out: it is another's business to say so. A node that
// is not synchronised itself has nothing to compare.
func (s *Server) sight(ctx context.Context) (round []sighting) {
	s.metrics.offsets.Reset()
	if s.Standing().Stratum == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, p := range s.settings.Load().peers {
		group.Go(func() {
			a, err := s.ask(ctx, p.addr.String())
			if err != nil || !a.Synchronised() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			s.metrics.offsets.WithLabelValues(p.node).Set(a.Offset.Seconds())
			round = append(round, sighting{p.node, a.Offset, a.Delay,
				fmt.Sprintf("stratum %d, below %v", a.Stratum, netip.AddrFrom4(a.ReferenceID))})
		})
	}
	group.Wait()
	return round
}

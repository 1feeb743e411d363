package logrelay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/cluster"
	"holdfast/internal/health"
)

// A host that logged in each of so many periods is regular; a regular one that
// logs nothing in so many is silent. Periods are counted, not times compared:
// a clock that jumps makes nobody silent.
const (
	silencePeriod = time.Minute
	regularAfter  = 10
	silentAfter   = 5
	silentForget  = 24 * 60 // periods; by then it is meant
	// Where so many of the regular hosts stop at once, they went to another
	// node with the address, or the network is cut: they begin anew.
	movedShare = 0.9

	conditionSilent = "logs.silent"
)

// silence finds hosts that logged regularly and stopped. Its methods may be
// called from any goroutine.
type silence struct {
	mu    sync.Mutex
	hosts map[string]*voice
}

// voice is how a host logs.
type voice struct {
	heard  atomic.Bool // in this period
	streak int         // periods in a row with lines, as far as counted
	quiet  int         // periods without since the last
}

func newSilence() *silence { return &silence{hosts: map[string]*voice{}} }

// of is the voice of a host; who hears a line sets heard.
func (s *silence) of(host string) *voice {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.hosts[host]
	if v == nil {
		v = &voice{}
		s.hosts[host] = v
	}
	return v
}

// tick ends a period, and returns who is silent.
func (s *silence) tick() (silent []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	regular := 0
	for host, v := range s.hosts {
		if v.heard.Swap(false) {
			if v.quiet > 0 && v.streak < regularAfter {
				v.streak = 0
			}
			v.streak, v.quiet = min(v.streak+1, regularAfter), 0
		} else if v.quiet++; v.quiet >= silentForget {
			v.streak = 0
		}
		if v.streak < regularAfter {
			continue
		}
		regular++
		if v.quiet >= silentAfter {
			silent = append(silent, host)
		}
	}
	fresh := 0
	for _, host := range silent {
		if s.hosts[host].quiet == silentAfter {
			fresh++
		}
	}
	if fresh > 1 && float64(fresh) >= movedShare*float64(regular) {
		for _, host := range silent {
			s.hosts[host].streak = 0
		}
		return nil
	}
	slices.Sort(silent)
	return silent
}

// listen looks for silent hosts until ctx ends.
func (s *silence) listen(ctx context.Context, board *health.Board, count prometheus.Gauge) {
	tick := time.NewTicker(silencePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		silent := s.tick()
		count.Set(float64(len(silent)))
		if len(silent) == 0 {
			board.Clear(conditionSilent)
			continue
		}
		board.Raise(conditionSilent, health.Warning, fmt.Sprintf(
			"%s logged every minute and has sent nothing for %v or more: look whether it lives, and whether its rsyslog does", cluster.Fold(silent), silentAfter*silencePeriod))
	}
}

// silent is who is, as of the last period.
func (s *silence) silent() (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for host, v := range s.hosts {
		if v.streak >= regularAfter && v.quiet >= silentAfter {
			list = append(list, host)
		}
	}
	slices.Sort(list)
	return list
}

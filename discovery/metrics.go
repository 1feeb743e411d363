package discovery

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/state"
)

type metrics struct {
	members     *prometheus.GaugeVec
	checks      *prometheus.GaugeVec
	transitions *prometheus.CounterVec
	syncRuns    *prometheus.CounterVec
	commands    *prometheus.CounterVec
	stored      prometheus.Histogram
	refused     *prometheus.CounterVec
	joins       *prometheus.CounterVec
}

// The tasks whose commands are counted.
const (
	bySync  = "anti-entropy"
	byLead  = "leader"
	byLeave = "leave"
	byLease = "leases"
)

func newMetrics(r prometheus.Registerer) *metrics {
	const prefix = "holdfast_discovery_"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, labels)
	}
	m := &metrics{
		members:     gauge("members", "Members of the gossip as this node sees them.", "liveness"),
		checks:      gauge("checks", "Checks of this node by their state.", "status"),
		transitions: counter("check_transitions_total", "Checks of this node that came to a state.", "status"),
		syncRuns:    counter("sync_runs_total", "Comparisons of this node's services and checks with the catalog.", "result"),
		commands:    counter("commands_total", "Commands proposed to the store.", "by", "result"),
		stored: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    prefix + "transition_stored_seconds",
			Help:    "Time from the result that changed a check to its place in the store.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		refused: counter("refused_total", "Members, messages and connections that the gossip refused.", "reason"),
		joins:   counter("join_attempts_total", "Attempts to reach a node that the gossip does not see.", "result"),
	}
	for _, l := range []state.Liveness{state.Alive, state.Leaving, state.Left, state.Failed} {
		m.members.WithLabelValues(string(l))
	}
	for _, s := range []state.Status{state.Passing, state.Warning, state.Critical} {
		m.checks.WithLabelValues(string(s))
		m.transitions.WithLabelValues(string(s))
	}
	for _, reason := range []refusal{refusedCluster, refusedKey, refusedConflict, refusedMalformed} {
		m.refused.WithLabelValues(string(reason))
	}
	if r != nil {
		r.MustRegister(m.members, m.checks, m.transitions, m.syncRuns, m.commands, m.stored, m.refused, m.joins)
	}
	return m
}

func (m *metrics) setMembers(members []state.Member) {
	count := map[state.Liveness]int{state.Alive: 0, state.Leaving: 0, state.Left: 0, state.Failed: 0}
	for _, member := range members {
		count[member.Liveness]++
	}
	for l, n := range count {
		m.members.WithLabelValues(string(l)).Set(float64(n))
	}
}

func (m *metrics) setChecks(count map[state.Status]int) {
	for _, s := range []state.Status{state.Passing, state.Warning, state.Critical} {
		m.checks.WithLabelValues(string(s)).Set(float64(count[s]))
	}
}

func (m *metrics) observeStored(took time.Duration) { m.stored.Observe(max(took, 0).Seconds()) }

func resultLabel(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

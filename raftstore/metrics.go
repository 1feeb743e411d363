package raftstore

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are listed in README.md.
type metrics struct {
	leader        prometheus.Gauge
	leaderKnown   prometheus.Gauge
	term          prometheus.Gauge
	commitIndex   prometheus.Gauge
	appliedIndex  prometheus.Gauge
	lastIndex     prometheus.Gauge
	logBytes      prometheus.Gauge
	voters        prometheus.Gauge
	elections     prometheus.Counter
	proposals     *prometheus.CounterVec
	latency       prometheus.Histogram
	refused       *prometheus.CounterVec
	changes       *prometheus.CounterVec
	badSnapshots  prometheus.Counter
	diskFree      prometheus.Gauge
	diskFitness   prometheus.Gauge
	hungWrites    prometheus.Counter
	damages       prometheus.Counter
	verified      prometheus.Gauge
	differing     prometheus.Gauge
	rebuilds      prometheus.Counter
	backupTime    prometheus.Gauge
	backupBytes   prometheus.Gauge
	backupsFailed prometheus.Counter
	stalls        *prometheus.HistogramVec
}

// newMetrics registers the store's metrics; a second registration (Run's
// owner made the store anew) is the caller's mistake and an error.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_raftstore_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Name: "holdfast_raftstore_" + name, Help: help}
	}
	m := &metrics{
		leader:       gauge("leader", "1 while this server is the leader and up to date, else 0."),
		leaderKnown:  gauge("leader_known", "1 while this server knows a leader, else 0."),
		term:         gauge("term", "Current Raft term."),
		commitIndex:  gauge("commit_index", "Last log entry known to be on a quorum."),
		appliedIndex: gauge("applied_index", "Last log entry in this server's state."),
		lastIndex:    gauge("last_index", "Last entry in this server's log."),
		logBytes:     gauge("log_size_bytes", "Size of the file that holds the log."),
		voters:       gauge("voters", "Servers with a vote, in the latest configuration."),
		elections:    prometheus.NewCounter(counter("leader_changes_total", "Times another leader, or none, was seen.")),
		proposals:    prometheus.NewCounterVec(counter("proposals_total", "Writes proposed on this node, by result."), []string{"result"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "holdfast_raftstore_proposal_duration_seconds",
			Help:    "Time from a proposal on this node until it was applied here.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		refused:      prometheus.NewCounterVec(counter("refused_connections_total", "Connections refused on the RPC port, by reason."), []string{"reason"}),
		changes:      prometheus.NewCounterVec(counter("membership_changes_total", "Changes of the Raft configuration made by this server, by kind."), []string{"kind"}),
		badSnapshots: prometheus.NewCounter(counter("snapshots_refused_total", "Snapshots that were to be restored and are truncated, corrupt or too long.")),
		hungWrites:   prometheus.NewCounter(counter("hung_writes_total", "Writes to the log given up because the disk did not answer.")),
		diskFree:     gauge("disk_free_bytes", "Space left for this server on the disk of the store."),
		diskFitness:  gauge("disk_unfit", "0 while the disk of the store is fit, 1 while it is low on space, 2 while it does not answer or errs."),
		verified:     gauge("verified_index", "Log entry after which this leader last compared the servers' states."),
		differing:    gauge("differing_servers", "Servers whose state was another than the majority's, at that comparison."),
		rebuilds:     prometheus.NewCounter(counter("rebuilds_total", "Times that this server's state was replaced by the majority's.")),
		backupTime:   gauge("backup_timestamp_seconds", "When the last scheduled snapshot was written and verified, Unix time; 0 not since the start."),
		backupBytes:  gauge("backup_size_bytes", "Size of that snapshot before it was sealed."),
		stalls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "holdfast_raftstore_stall_duration_seconds",
			Help:    "Times of 50 ms and more that this server was held up, by what it waited for.",
			Buckets: []float64{.1, .15, .3, .6, 1, 2, 5},
		}, []string{"by"}),
		backupsFailed: prometheus.NewCounter(counter("backups_failed_total", "Scheduled snapshots that could not be written or did not verify.")),
		damages:       prometheus.NewCounter(counter("damages_total", "Times that the log, the votes or a snapshot was not what had been written.")),
	}
	for _, code := range refusals() {
		m.refused.WithLabelValues(code.String())
	}
	for _, kind := range []stallKind{stallProcessor, stallDisk} {
		m.stalls.WithLabelValues(string(kind))
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.leader, m.leaderKnown, m.term, m.commitIndex, m.appliedIndex, m.lastIndex, m.logBytes,
		m.voters, m.elections, m.proposals, m.latency, m.refused, m.changes, m.badSnapshots, m.hungWrites, m.damages, m.diskFree, m.diskFitness,
		m.verified, m.differing, m.rebuilds,
		m.backupTime, m.backupBytes, m.backupsFailed, m.stalls,
	} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

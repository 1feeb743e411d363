package logrelay

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the README lists.
type metrics struct {
	inputs         [viaLast + 1]inputMetrics
	shed           prometheus.Counter
	refused        *prometheus.CounterVec
	lines          *prometheus.CounterVec // of outputs
	bytes          *prometheus.CounterVec
	dropped        *prometheus.CounterVec
	limited        *prometheus.CounterVec
	misfits        *prometheus.CounterVec
	commits        prometheus.Histogram
	failed         prometheus.Counter
	replicated     prometheus.Counter
	again, doubted prometheus.Counter
	doubled        prometheus.Counter
	missing        prometheus.Counter
	silent         prometheus.Gauge
	losses
}

// inputMetrics are those of one way in.
type inputMetrics struct {
	lines, bytes, connections prometheus.Counter
	acked                     prometheus.Counter // of RELP alone
}

func (m inputMetrics) took(lines, bytes int) {
	m.lines.Add(float64(lines))
	m.bytes.Add(float64(bytes))
}

// outputMetrics are those of one output.
type outputMetrics struct {
	lines, bytes, dropped, limited, failed prometheus.Counter
	broken                                 prometheus.Counter // lines in whose place another stands
}

// lets tells whether a line goes to the output, and counts it if it does not.
func (m *outputMetrics) lets(v verdict) bool {
	switch v {
	case dropped:
		m.dropped.Inc()
	case limited:
		m.limited.Inc()
	}
	return v == goes
}

func (m *metrics) input(via uint8) inputMetrics { return m.inputs[via] }

func (m *metrics) output(name string) *outputMetrics {
	return &outputMetrics{
		m.lines.WithLabelValues(name), m.bytes.WithLabelValues(name), m.dropped.WithLabelValues(name),
		m.limited.WithLabelValues(name), m.misfits.WithLabelValues(name), m.broken.WithLabelValues(name),
	}
}

// newMetrics makes the metrics and registers them. journal tells how many
// bytes it takes.
func newMetrics(reg prometheus.Registerer, journalBytes func() float64) (*metrics, error) {
	vector := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	lost, err := newLosses(reg)
	if err != nil {
		return nil, err
	}
	inLines := vector("holdfast_logs_received_lines_total", "Lines received, by input.", "input")
	inBytes := vector("holdfast_logs_received_bytes_total", "Bytes of lines received, by input.", "input")
	conns := vector("holdfast_logs_connections_total", "Connections accepted, by input.", "input")
	acked := vector("holdfast_logs_acknowledged_lines_total", "Lines acknowledged by RELP: they are on the disk; by input.", "input")
	m := &metrics{
		shed:       counter("holdfast_logs_shed_lines_total", "UDP debug lines dropped because the disk was full."),
		refused:    vector("holdfast_logs_broken_connections_total", "Connections that ended with an error, by input.", "input"),
		lines:      vector("holdfast_logs_written_lines_total", "Lines that an output took, by output.", "output"),
		bytes:      vector("holdfast_logs_written_bytes_total", "Bytes that an output took, by output.", "output"),
		dropped:    vector("holdfast_logs_dropped_lines_total", "Lines that a rule dropped, by output.", "output"),
		limited:    vector("holdfast_logs_limited_lines_total", "Lines that a limit left out, by output.", "output"),
		misfits:    vector("holdfast_logs_rule_failures_total", "Conditions and changes that failed, so that they were passed over, by output.", "output"),
		replicated: counter("holdfast_logs_replicated_lines_total", "Lines of other nodes that are on this disk."),
		again:      counter("holdfast_logs_duplicates_dropped_total", "RELP lines sent again though they were stored, and not stored again."),
		doubted:    counter("holdfast_logs_suspected_duplicates_total", "RELP lines that began a session as stored ones do, and were stored: some are there twice."),
		doubled:    counter("holdfast_logs_doubled_lines_total", "RELP lines that are on this node twice: they were stored, here or by another node, and clients, which were not told, sent them again."),
		missing:    counter("holdfast_logs_missing_lines_total", "Lines that senders numbered (RFC 5424 sequenceId) and that did not come."),
		silent:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "holdfast_logs_silent_hosts", Help: "Hosts that logged every minute and stopped."}),
		failed:     counter("holdfast_logs_journal_failures_total", "Writes to the journal that the disk refused."),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_logs_commit_seconds", Help: "Time until lines are on the disk.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		losses: lost,
	}
	size := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "holdfast_logs_journal_bytes", Help: "Bytes of the journal on the disk."}, journalBytes)
	for _, c := range []prometheus.Collector{
		inLines, inBytes, conns, acked, m.shed, m.refused, m.lines, m.bytes, m.dropped, m.limited, m.misfits, m.failed, m.commits, size, m.replicated, m.again, m.doubted, m.doubled, m.missing, m.silent,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("logrelay: register metrics: %w", err)
		}
	}
	for via := viaRELP; via <= viaLast; via++ {
		name := inputName(via)
		m.inputs[via] = inputMetrics{inLines.WithLabelValues(name), inBytes.WithLabelValues(name), conns.WithLabelValues(name), nil}
	}
	for _, via := range []uint8{viaRELP, viaRELPTLS} {
		m.inputs[via].acked = acked.WithLabelValues(inputName(via))
	}
	return m, nil
}

// committed counts a write of the journal.
func (m *metrics) committed(_, _ int, took time.Duration, err error) {
	if err != nil {
		m.failed.Inc()
		return
	}
	m.commits.Observe(took.Seconds())
}

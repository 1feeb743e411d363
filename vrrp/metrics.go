package vrrp

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the README lists.
type metrics struct {
	state         *prometheus.GaugeVec
	priority      *prometheus.GaugeVec
	transitions   *prometheus.CounterVec
	sent          *prometheus.CounterVec
	received      *prometheus.CounterVec
	sendErrors    *prometheus.CounterVec
	dropped       *prometheus.CounterVec
	announcements *prometheus.CounterVec
	conflicts     *prometheus.CounterVec
	returned      *prometheus.CounterVec
	hooks         *prometheus.CounterVec
	stalls        prometheus.Counter
	stalled       prometheus.Counter
	delay         prometheus.Histogram
	takeover      prometheus.Histogram
	guardStarts   prometheus.Counter
	lease         *prometheus.GaugeVec
	leaseWrites   *prometheus.CounterVec
	leaseLosses   *prometheus.CounterVec
	leaseWait     prometheus.Histogram
}

const perRouter = "router"

// newMetrics makes the metrics and registers them.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_vrrp_" + name, Help: help}, labels)
	}
	single := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_vrrp_" + name, Help: help})
	}
	m := &metrics{
		state: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_vrrp_state", Help: "1 for the state that a virtual router is in, 0 for the others.",
		}, []string{perRouter, "state"}),
		priority: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_vrrp_priority", Help: "Priority of a virtual router, with the weights of what it tracks.",
		}, []string{perRouter}),
		transitions:   counter("transitions_total", "Changes of state, by the state that a virtual router came to.", perRouter, "state"),
		sent:          counter("adverts_sent_total", "Advertisements sent; to several peers it is one.", perRouter),
		received:      counter("adverts_received_total", "Advertisements taken.", perRouter),
		sendErrors:    counter("send_errors_total", "Advertisements that could not be sent.", perRouter),
		dropped:       counter("dropped_total", "Packets of protocol 112 that were not taken, by reason.", "reason"),
		announcements: counter("announcements_total", "Addresses announced to the neighbours (gratuitous ARP, unsolicited NA).", perRouter),
		conflicts:     counter("conflicts_total", "Claims of another for an address that this node holds.", perRouter),
		returned:      counter("addresses_returned_total", "Addresses put back that somebody else had removed.", perRouter),
		hooks:         counter("hook_runs_total", "Programs run at transitions, by result: ok, failed, timeout, refused, coalesced.", "result"),
		stalls:        single("stalls_total", "Times that this process did not run when a deadline passed."),
		stalled:       single("stalled_seconds_total", "Time by which deadlines were overslept in stalls."),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_vrrp_deadline_delay_seconds", Help: "How late the protocol's deadlines were met.",
			Buckets: prometheus.ExponentialBuckets(25e-6, 4, 10), // 25 µs to 6.5 s
		}),
		takeover: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_vrrp_takeover_duration_seconds", Help: "From becoming Active to all addresses in place and announced.",
			Buckets: prometheus.ExponentialBuckets(100e-6, 2.5, 11), // 0.1 ms to 0.95 s
		}),
		lease: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_vrrp_lease_held", Help: "1 while a fenced virtual router may have its addresses on this node.",
		}, []string{perRouter}),
		leaseWrites: counter("lease_writes_total", "Writes of a fenced virtual router's lease to the store, by result: written, conflict, failed.", perRouter, "result"),
		leaseLosses: counter("lease_losses_total", "Leases that an Active lost: not renewed in time, or another's.", perRouter),
		leaseWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_vrrp_lease_wait_seconds", Help: "From becoming Active to having the lease of a fenced virtual router.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2.5, 11), // 1 ms to 9.5 s
		}),
		guardStarts: single("guard_restarts_total", "Guards started because the one before had ended."),
	}
	for _, c := range []prometheus.Collector{
		m.state, m.priority, m.transitions, m.sent, m.received, m.sendErrors, m.dropped, m.announcements,
		m.conflicts, m.returned, m.hooks, m.stalls, m.stalled, m.delay, m.takeover, m.guardStarts,
		m.lease, m.leaseWrites, m.leaseLosses, m.leaseWait,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("vrrp: register metrics: %w", err)
		}
	}
	return m, nil
}

// routerMetrics are the series of one router, looked up once: counting on the
// protocol's path costs no map.
type routerMetrics struct {
	sent, received, sendErrors, announcements, conflicts, returned prometheus.Counter
	priority, lease                                                prometheus.Gauge
	states                                                         [Fault + 1]prometheus.Gauge
}

func (m *metrics) router(name string) *routerMetrics {
	r := &routerMetrics{
		sent:          m.sent.WithLabelValues(name),
		received:      m.received.WithLabelValues(name),
		sendErrors:    m.sendErrors.WithLabelValues(name),
		announcements: m.announcements.WithLabelValues(name),
		conflicts:     m.conflicts.WithLabelValues(name),
		returned:      m.returned.WithLabelValues(name),
		priority:      m.priority.WithLabelValues(name),
		lease:         m.lease.WithLabelValues(name),
	}
	for state := Initialize; state <= Fault; state++ {
		r.states[state] = m.state.WithLabelValues(name, stateLabel(state))
	}
	r.set(Initialize)
	return r
}

// set shows a state.
func (r *routerMetrics) set(now State) {
	for state := range r.states {
		if State(state) == now {
			r.states[state].Set(1)
		} else {
			r.states[state].Set(0)
		}
	}
}

// forget removes the series of a router that is gone.
func (m *metrics) forget(name string) {
	label := prometheus.Labels{perRouter: name}
	for _, vector := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{m.state, m.priority, m.transitions, m.sent, m.received, m.sendErrors, m.announcements, m.conflicts, m.returned, m.lease, m.leaseWrites, m.leaseLosses} {
		vector.DeletePartialMatch(label)
	}
}

func stateLabel(s State) string {
	return [...]string{Initialize: "initialize", Backup: "backup", Active: "active", Fault: "fault"}[s]
}

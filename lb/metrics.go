package lb

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the README lists.
type metrics struct {
	directs prometheus.Gauge
	changes prometheus.Counter
	errors  prometheus.Counter
	weight  *prometheus.GaugeVec
}

// newMetrics makes the metrics and registers them.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		directs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_lb_directs", Help: "1 while this node forwards to real servers.",
		}),
		changes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_lb_changes_total", Help: "Changes made to the kernel's tables, addresses and sysctls.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_lb_errors_total", Help: "Plans that could not be applied whole.",
		}),
		weight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_lb_server_weight_ratio", Help: "Weight of a real server in the plan.",
		}, []string{"service", "server"}),
	}
	for _, c := range []prometheus.Collector{m.directs, m.changes, m.errors, m.weight} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("lb: metrics: %w", err)
		}
	}
	return m, nil
}

// applied counts one application of a plan.
func (m *metrics) applied(p Plan, changes int, err error) {
	m.directs.Set(0)
	if p.Directs {
		m.directs.Set(1)
	}
	m.changes.Add(float64(changes))
	if err != nil {
		m.errors.Inc()
	}
	m.weight.Reset()
	for _, v := range p.Tables {
		if v.Mark >= firstMark && v.Mark < firstMark+1<<16 {
			continue // leads our own checks
		}
		for _, r := range v.Servers {
			m.weight.WithLabelValues(v.Key.String(), r.Addr.String()).Set(float64(r.Weight))
		}
	}
}

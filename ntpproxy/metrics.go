package ntpproxy

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/ntp"
)

// metrics are what the README lists.
type metrics struct {
	requests *prometheus.CounterVec
	failed   prometheus.Counter
	panics   prometheus.Counter
	offsets  *prometheus.GaugeVec // of the other nodes

	byOutcome [outcomes]prometheus.Counter // of requests
}

// clocks collects how the clients' clocks look.
type clocks struct{ count func() map[string]int }

var clocksDesc = prometheus.NewDesc("holdfast_ntp_clients", "Machines of the cluster that asked within the last hour, by how their clock looks.", []string{"clock"}, nil)

// Describe says what Collect gives.
func (clocks) Describe(out chan<- *prometheus.Desc) { out <- clocksDesc }

// Collect counts them.
func (c clocks) Collect(out chan<- prometheus.Metric) {
	for clock, n := range c.count() {
		out <- prometheus.MustNewConstMetric(clocksDesc, prometheus.GaugeValue, float64(n), clock)
	}
}

// newMetrics makes the metrics and registers them. standing tells how the
// clock stands.
func newMetrics(reg prometheus.Registerer, standing func() Standing, now func() time.Time, clients func() map[string]int, kept func() *Kept) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_ntp_requests_total", Help: "Datagrams received, by what became of them.",
		}, []string{"outcome"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_ntp_send_failures_total", Help: "Replies that the kernel would not send.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_ntp_panics_total", Help: "Bugs: panics that cost a datagram, or a restart of the server.",
		}),
		offsets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_ntp_node_offset_seconds", Help: "How far another service node's clock is ahead of this one's, by node.",
		}, []string{"node"}),
	}
	gauge := func(name, help string, value func(ntp.Packet) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			s := standing()
			return value(s.header(now()))
		})
	}
	correction := func(name, help string, value func(*Kept) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if k := kept(); k != nil {
				return value(k)
			}
			return 0
		})
	}
	collectors := []prometheus.Collector{
		correction("holdfast_ntp_slew_ratio", "How much faster this node's clock runs now to correct its offset, in seconds per second.", func(k *Kept) float64 { return k.Slew }),
		correction("holdfast_ntp_offset_seconds", "How far this node's clock is behind where it is being brought.", func(k *Kept) float64 { return k.Offset.Seconds() }),
		m.requests, m.failed, m.panics, m.offsets, clocks{clients},
		gauge("holdfast_ntp_stratum", "Stratum that is served; 16 when the clock is not synchronised.", func(p ntp.Packet) float64 {
			if p.Stratum == 0 {
				return ntp.MaxStratum + 1
			}
			return float64(p.Stratum)
		}),
		gauge("holdfast_ntp_root_dispersion_seconds", "Greatest error of the clock against its source that is served.", func(p ntp.Packet) float64 {
			return p.RootDispersion.Duration().Seconds()
		}),
		gauge("holdfast_ntp_root_delay_seconds", "Time of the way to the source of time and back.", func(p ntp.Packet) float64 {
			return p.RootDelay.Duration().Seconds()
		}),
	}
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("ntpproxy: register metrics: %w", err)
		}
	}
	for o := range m.byOutcome {
		m.byOutcome[o] = m.requests.WithLabelValues(outcome(o).String())
	}
	return m, nil
}

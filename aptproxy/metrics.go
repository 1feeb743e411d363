package aptproxy

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the README lists.
type metrics struct {
	requests     *prometheus.CounterVec
	upstream     *prometheus.CounterVec
	served       prometheus.Counter
	fetchedBytes prometheus.Counter
	lies         prometheus.Counter
	failed       prometheus.Counter
	refused      *prometheus.CounterVec

	hit, miss, passed, own prometheus.Counter // of requests
}

// gauges is what is measured when it is asked for.
type gauges struct {
	blobs, bytes, quarantined, evicted, flights float64
}

// newMetrics makes the metrics and registers them.
func newMetrics(reg prometheus.Registerer, now func() gauges) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "holdfast_apt_" + name, Help: help})
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "holdfast_apt_" + name, Help: help}, []string{label})
	}
	m := &metrics{
		requests:     vector("requests_total", "Requests, by where the answer came from.", "from"),
		upstream:     vector("upstream_responses_total", "Answers of mirrors and other servers, by the class of their status.", "class"),
		served:       counter("served_bytes_total", "Bytes of bodies sent to clients."),
		fetchedBytes: counter("fetched_bytes_total", "Bytes of bodies received from mirrors and other servers."),
		lies:         counter("wrong_bodies_total", "Bodies that mirrors sent and that were not what a signature vouches for."),
		failed:       counter("failed_downloads_total", "Downloads that no mirror could bring to an end."),
		refused:      vector("refused_requests_total", "Requests that were refused, by why.", "why"),
	}
	gauge := func(name, help string, value func(gauges) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "holdfast_apt_" + name, Help: help}, func() float64 { return value(now()) })
	}
	for _, c := range []prometheus.Collector{
		m.requests, m.upstream, m.served, m.fetchedBytes, m.lies, m.failed, m.refused,
		gauge("store_blobs", "Files in the store.", func(g gauges) float64 { return g.blobs }),
		gauge("store_bytes", "Bytes of all files in the store.", func(g gauges) float64 { return g.bytes }),
		gauge("store_quarantined_blobs", "Files found damaged since the start.", func(g gauges) float64 { return g.quarantined }),
		gauge("store_evicted_blobs", "Files removed for want of room since the start.", func(g gauges) float64 { return g.evicted }),
		gauge("downloads", "Downloads under way.", func(g gauges) float64 { return g.flights }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("aptproxy: register metrics: %w", err)
		}
	}
	m.hit, m.miss = m.requests.WithLabelValues("store"), m.requests.WithLabelValues("mirror")
	m.passed, m.own = m.requests.WithLabelValues("other"), m.requests.WithLabelValues("self")
	return m, nil
}

func (s *Server) gauges() gauges {
	g := gauges{flights: float64(s.flights.count())}
	if store := s.room.Load(); store != nil { // who asks may do so before Run, and after
		st := store.Stats()
		g.blobs, g.bytes, g.quarantined, g.evicted = float64(st.Blobs), float64(st.Bytes), float64(st.Quarantined), float64(st.Evicted)
	}
	return g
}

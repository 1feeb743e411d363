package api

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	requests *prometheus.CounterVec   // endpoint, method, code
	duration *prometheus.HistogramVec // endpoint
	refused  *prometheus.CounterVec   // reason
	blocking prometheus.Gauge
	blocked  *prometheus.CounterVec // how a blocking query ended
	wakes    *prometheus.CounterVec // result
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_api_requests_total",
			Help: "HTTP requests answered, by endpoint, method and status code.",
		}, []string{"endpoint", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "holdfast_api_request_duration_seconds",
			Help:    "Time to answer a request that did not block.",
			Buckets: []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5},
		}, []string{"endpoint"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_api_refused_total",
			Help: "Requests refused before they were looked at, by reason.",
		}, []string{"reason"}),
		blocking: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_api_blocking_queries",
			Help: "Blocking queries that wait now.",
		}),
		blocked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_api_blocking_queries_ended_total",
			Help: "Blocking queries that ended: changed, timeout, gone (the client), stopped (the agent), refused (its token was taken away).",
		}, []string{"reason"}),
		wakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_api_blocking_wakes_total",
			Help: "Times a blocking query looked again, by whether its answer had changed.",
		}, []string{"result"}),
	}
	for _, collector := range []prometheus.Collector{m.requests, m.duration, m.refused, m.blocking, m.blocked, m.wakes} {
		if err := registerer.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

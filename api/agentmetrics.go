package api

import (
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// agentMetrics answers in Prometheus's text format with ?format=prometheus,
// and otherwise in the JSON that Consul's clients read.
func (s *Server) agentMetrics(c *call) error {
	if c.args.Get("format") == "prometheus" {
		options := promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}
		c.w.extend(writeTimeout)
		promhttp.HandlerFor(s.gatherer, options).ServeHTTP(c.w, c.Request)
		return nil
	}
	families, err := s.gatherer.Gather()
	if err != nil && len(families) == 0 {
		return fmt.Errorf("gather metrics: %w", err)
	}
	return s.reply(c, metricsOf(families, s.now()))
}

type metricsJSON struct {
	Timestamp string
	Gauges    []gaugeJSON
	Points    []struct{}
	Counters  []sampleJSON
	Samples   []sampleJSON
}

type gaugeJSON struct {
	Name   string
	Value  float64
	Labels map[string]string
}

type sampleJSON struct {
	Name   string
	Count  uint64
	Rate   float64
	Sum    float64
	Min    float64
	Max    float64
	Mean   float64
	Stddev float64
	Labels map[string]string
}

// metricsOf translates. Consul's counters are sums of a window and Prometheus's
// run on; a reader that takes differences sees the same. Numbers that JSON
// cannot hold are left out.
func metricsOf(families []*dto.MetricFamily, now time.Time) metricsJSON {
	out := metricsJSON{
		Timestamp: now.UTC().Format("2006-01-02 15:04:05 +0000 UTC"),
		Gauges:    []gaugeJSON{}, Points: []struct{}{}, Counters: []sampleJSON{}, Samples: []sampleJSON{},
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			out.add(family.GetName(), family.GetType(), metric)
		}
	}
	return out
}

func (m *metricsJSON) add(name string, kind dto.MetricType, metric *dto.Metric) {
	labels := map[string]string{}
	for _, pair := range metric.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	sample := func(count uint64, sum float64) sampleJSON {
		s := sampleJSON{Name: name, Count: count, Sum: sum, Labels: labels}
		if count > 0 {
			s.Mean = sum / float64(count)
		}
		return s
	}
	gauge := func(value float64) {
		if !finite(value) {
			return
		}
		m.Gauges = append(m.Gauges, gaugeJSON{Name: name, Value: value, Labels: labels})
	}
	switch kind {
	case dto.MetricType_COUNTER:
		if value := metric.GetCounter().GetValue(); finite(value) {
			m.Counters = append(m.Counters, sample(1, value))
		}
	case dto.MetricType_GAUGE:
		gauge(metric.GetGauge().GetValue())
	case dto.MetricType_UNTYPED:
		gauge(metric.GetUntyped().GetValue())
	case dto.MetricType_HISTOGRAM:
		if h := metric.GetHistogram(); finite(h.GetSampleSum()) {
			m.Samples = append(m.Samples, sample(h.GetSampleCount(), h.GetSampleSum()))
		}
	case dto.MetricType_SUMMARY:
		if q := metric.GetSummary(); finite(q.GetSampleSum()) {
			m.Samples = append(m.Samples, sample(q.GetSampleCount(), q.GetSampleSum()))
		}
	}
}

func finite(value float64) bool { return !math.IsNaN(value) && !math.IsInf(value, 0) }

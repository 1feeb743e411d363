package admin

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one unit. Units that share a process share the collectors.
type metrics struct {
	requests prometheus.Counter
	refused  prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer, unit string) (*metrics, error) {
	requests, err := counter(registerer, "holdfast_admin_requests_total", "Requests answered on the admin socket.", unit)
	if err != nil {
		return nil, err
	}
	refused, err := counter(registerer, "holdfast_admin_refused_total", "Requests refused on the admin socket because of who asked.", unit)
	if err != nil {
		return nil, err
	}
	return &metrics{requests: requests, refused: refused}, nil
}

func counter(registerer prometheus.Registerer, name, help, unit string) (prometheus.Counter, error) {
	vector := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"unit"})
	var already prometheus.AlreadyRegisteredError
	switch err := registerer.Register(vector); {
	case errors.As(err, &already):
		vector = already.ExistingCollector.(*prometheus.CounterVec)
	case err != nil:
		return nil, err
	}
	return vector.WithLabelValues(unit), nil
}

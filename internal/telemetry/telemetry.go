// Package telemetry makes what a process tells of itself: its log and its
// registry of metrics.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewLogger writes to w. format is "text" or "json"; level is "debug",
// "info", "warn" or "error", and can be changed later through the LevelVar.
func NewLogger(w io.Writer, format, level string) (*slog.Logger, *slog.LevelVar, error) {
	var threshold slog.LevelVar
	if err := threshold.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, fmt.Errorf("telemetry: log level %q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: &threshold}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), &threshold, nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), &threshold, nil
	}
	return nil, nil, fmt.Errorf("telemetry: log format %q: want text or json", format)
}

// NewRegistry returns a registry that already tells about the process, the
// Go runtime and the build: holdfast_build_info{version} is always 1.
func NewRegistry(version string) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "holdfast_build_info",
		Help:        "Always 1; the version stands in the label.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	registry.MustRegister(
		build,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// Command promsd is Prometheus's own discovery of Consul services, without the
// rest of Prometheus: it prints each set of targets that it is sent as a line
// of JSON, until it is killed. Its arguments are the server's address and the
// services' tag.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/targetgroup"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "promsd:", err)
		os.Exit(1)
	}
}

func run(server, tag string) error {
	config := consul.DefaultSDConfig
	config.Server, config.ServiceTags = server, []string{tag}
	config.RefreshInterval = model.Duration(100 * time.Millisecond) // not the usual 30 s, since a test waits
	registry := prometheus.NewRegistry()
	metrics := config.NewDiscovererMetrics(registry, discovery.NewRefreshMetrics(registry))
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	found, err := config.NewDiscoverer(discovery.DiscovererOptions{Logger: log, Metrics: metrics, HTTPClientOptions: nil})
	if err != nil {
		return err
	}
	groups := make(chan []*targetgroup.Group)
	go found.Run(context.Background(), groups)
	encoder := json.NewEncoder(os.Stdout)
	for group := range groups {
		for _, g := range group {
			if err := encoder.Encode(map[string]any{"source": g.Source, "labels": g.Labels, "targets": g.Targets}); err != nil {
				return err
			}
		}
	}
	return nil
}

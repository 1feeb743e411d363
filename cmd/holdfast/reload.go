package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/discovery"
	"holdfast/dns"
	"holdfast/internal/health"
)

// applied are the parts of the cluster file that a reload changes at once;
// the others take effect at the next start.
var applied = map[string]bool{"services": true, "dns": true, "vips": true, "nodes": true, "networks": true, "domain": true}

// reloader reads the cluster file again and tells the tasks.
type reloader struct {
	source  *cluster.Source
	path    string
	node    string
	board   *health.Board
	log     *slog.Logger
	members *discovery.Agent
	names   *dns.Server

	mu     sync.Mutex
	loaded time.Time
	wait   map[string]bool // parts that a restart would apply
}

// follow reloads at every signal until ctx ends.
func (r *reloader) follow(ctx context.Context, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			_, _ = r.ReloadConfig(ctx) // it has told the log
		}
	}
}

// ReloadConfig implements api.ConfigSource. What can be applied is applied at
// once; the condition "config.restart" names the rest until the restart.
func (r *reloader) ReloadConfig(context.Context) (api.ReloadReport, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change, err := r.source.Reload()
	if err != nil {
		r.log.Error("the cluster file was not reloaded: it has mistakes, and the one before stays in use", "error", err)
		return api.ReloadReport{}, err
	}
	file := r.source.Current()
	r.loaded = time.Now()
	report := api.ReloadReport{Changed: !change.IsEmpty(), Sum: file.Sum}
	r.names.SetFile(file)
	services, err := discovery.ServicesFrom(file, r.node)
	if err == nil {
		err = r.members.SetServices(services)
	}
	if err != nil {
		return report, err
	}
	r.members.SetConfigSum(file.Sum)
	for _, section := range change.Sections {
		if applied[section] {
			report.Applied = append(report.Applied, section)
			continue
		}
		report.Restart = append(report.Restart, section)
		if r.wait == nil {
			r.wait = map[string]bool{}
		}
		r.wait[section] = true
	}
	if len(report.Restart) > 0 {
		r.board.Raise("config.restart", health.Warning,
			"the cluster file changed in "+strings.Join(report.Restart, ", ")+": restart the agent to apply it (one node at a time)")
	}
	r.log.Info("cluster file reloaded", "sum", file.Sum, "applied", report.Applied, "restart", report.Restart)
	return report, nil
}

// ConfigStatus implements api.ConfigSource.
func (r *reloader) ConfigStatus() api.ConfigStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	file := r.source.Current()
	status := api.ConfigStatus{Path: r.path, Sum: file.Sum, Loaded: r.loaded}
	for _, c := range r.board.Conditions() {
		if c.Name == cluster.ConditionLastGood {
			status.LastGood = true
			status.Problems = strings.Split(c.Message, "\n")[1:]
		}
	}
	return status
}

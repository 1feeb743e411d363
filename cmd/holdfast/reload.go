package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/api"
	"holdfast/aptproxy"
	"holdfast/cluster"
	"holdfast/discovery"
	"holdfast/dns"
	"holdfast/internal/health"
	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
	"holdfast/ntpproxy"
	"holdfast/vrrp"
)

// conditionRestart: the cluster file has changes that wait for a restart.
const conditionRestart = "config.restart"

// applied are the parts of the cluster file that a reload changes at once;
// the others take effect at the next start.
var applied = map[string]bool{"services": true, "apt": true, "dns": true, "ntp": true, "vips": true, "vrrp": true, "vip_defaults": true, "lb": true, "nodes": true, "networks": true, "domain": true}

// reloader reads the cluster file again and tells the tasks.
type reloader struct {
	source   *cluster.Source
	path     string // "" when there is no file
	node     string
	started  *cluster.File // what the tasks were made from
	board    *health.Board
	log      *slog.Logger
	members  *discovery.Agent
	names    *dns.Server
	network  *network // nil: a unit of its own
	clock    *ntpproxy.Server
	packages *aptproxy.Server
	logs     func(*cluster.File) // of a relay in this process
	// certificates are looked at too; nil: this node has none.
	certificates *certificates
	// commands allows the programs that the file named at the start.
	commands *command.Runner

	reloading sync.Mutex // one at a time
	mu        sync.Mutex // loaded's: status must not wait for a file that can't be read
	loaded    time.Time
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
// once; the condition "config.restart" names the rest until a restart applies
// it or the file is changed back. A file with mistakes changes nothing.
func (r *reloader) ReloadConfig(context.Context) (api.ReloadReport, error) {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	r.certificates.soon()
	if r.path == "" {
		err := fmt.Errorf("%w: this node is a cluster of its own: it was started without a cluster file, and there is none to reload", state.ErrInvalid)
		r.log.Warn("nothing to reload", "reason", "the agent was started without a cluster file")
		return api.ReloadReport{}, err
	}
	report, err := r.reload()
	if err != nil {
		r.log.Error("the cluster file was not reloaded", "path", r.path, "error", err)
		return api.ReloadReport{}, err
	}
	r.log.Info("cluster file reloaded", "path", r.path, "sum", report.Sum, "changed", report.Details,
		"applied", report.Applied, "restart", report.Restart)
	return report, nil
}

func (r *reloader) reload() (api.ReloadReport, error) {
	if err := r.check(); err != nil {
		return api.ReloadReport{}, err
	}
	change, err := r.source.Reload()
	if err != nil {
		return api.ReloadReport{}, err
	}
	file := r.source.Current()
	services, err := discovery.ServicesFrom(file, r.node)
	if err == nil {
		err = r.members.SetServices(services)
	}
	if err != nil {
		return api.ReloadReport{}, fmt.Errorf("take over the services of %s: %w", r.path, err)
	}
	var programs []string
	if r.network != nil {
		if programs, err = r.network.apply(file, r.node); err != nil {
			return api.ReloadReport{}, fmt.Errorf("take over the virtual addresses of %s: %w", r.path, err)
		}
	}
	r.names.SetFile(file)
	r.clock.SetFile(file)
	r.packages.SetFile(file)
	r.logs(file)
	r.members.SetConfigSum(file.Sum)
	r.mu.Lock()
	r.loaded = time.Now()
	r.mu.Unlock()
	report := api.ReloadReport{Changed: !change.IsEmpty(), Sum: file.Sum, Details: change.Details}
	for _, section := range change.Sections {
		if applied[section] {
			report.Applied = append(report.Applied, section)
		}
	}
	report.Restart = r.waiting(file, services, programs)
	return report, nil
}

// check refuses, before anything changes, what this node can't take over. A
// file that lacks this node is such: the node would serve on without a place
// in it, and could not start again.
func (r *reloader) check() error {
	file, err := cluster.Load(r.path, sections())
	if err != nil {
		return err
	}
	if file.Node(r.node) == nil {
		return fmt.Errorf("%w: %s lacks this node, %s: let it leave (holdfast leave) before it is taken out of the file", state.ErrInvalid, r.path, r.node)
	}
	if _, err = discovery.ServicesFrom(file, r.node); err != nil {
		return err
	}
	_, err = vrrp.SettingsFrom(file, r.node)
	return err
}

// waiting tells which parts of the file differ from what the tasks were made
// from and can't be applied, and raises or clears the condition.
func (r *reloader) waiting(file *cluster.File, services []discovery.ServiceDefinition, programs []string) []string {
	parts := append(slices.Clone(programs), r.clock.Waiting()...)
	for _, section := range cluster.Diff(r.started, file).Sections {
		if !applied[section] {
			parts = append(parts, section)
		}
	}
	for _, program := range scripts(services) {
		// What may run is fixed while the agent runs.
		if errors.Is(r.commands.Allowed(program), command.ErrNotAllowed) {
			parts = append(parts, "script check "+program)
		}
	}
	if len(parts) == 0 {
		r.board.Clear(conditionRestart)
		return nil
	}
	r.board.Raise(conditionRestart, health.Warning,
		"the cluster file changed in "+strings.Join(parts, ", ")+": restart the agent to apply it (one node at a time)")
	return parts
}

// ConfigStatus implements api.ConfigSource.
func (r *reloader) ConfigStatus() api.ConfigStatus {
	r.mu.Lock()
	loaded := r.loaded
	r.mu.Unlock()
	status := api.ConfigStatus{Path: r.path, Sum: r.source.Current().Sum, Loaded: loaded}
	for _, c := range r.board.Conditions() {
		if c.Name == cluster.ConditionLastGood {
			status.LastGood = true
			status.Problems = strings.Split(c.Message, "\n")[1:]
		}
	}
	return status
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"holdfast/cluster"
	"holdfast/discovery"
	"holdfast/internal/admin"
	"holdfast/internal/check"
	"holdfast/internal/health"
	"holdfast/internal/kernel/command"
	"holdfast/internal/run"
)

// scriptsSocket is where the unit scripts answers. It may be in a directory of
// the unit's own user.
func (c *agentCmd) scriptsSocket() string {
	if c.ScriptsSocket != "" {
		return c.ScriptsSocket
	}
	return filepath.Join(c.RunDir, onlyScripts+".sock")
}

// scriptsApart has script checks run by the unit scripts, once it was started.
func (c *agentCmd) scriptsApart(base *foundation) *check.Apart {
	socket := c.scriptsSocket()
	return check.NewApart(check.ApartConfig{
		Base: admin.BaseURL, Web: admin.Client(socket), Log: base.log,
		Here: func() bool { _, err := os.Lstat(socket); return err == nil },
	})
}

// scriptUnit runs the script checks of this node when core asks. All that it
// knows it reads in the cluster file itself.
type scriptUnit struct {
	base     *foundation
	commands *command.Runner // what may run is fixed while the unit runs
	scripts  *check.Scripts

	reloading sync.Mutex // one at a time: the last file that was read counts
}

// runScripts runs the unit scripts: no store, no network, no certificates and no
// data directory.
func (c *agentCmd) runScripts(con *console, hangup <-chan os.Signal) error {
	base, err := c.lay(con)
	if err != nil {
		return err
	}
	u, err := newScriptUnit(base)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	socket, err := admin.New(admin.Config{
		Unit: onlyScripts, Path: c.scriptsSocket(),
		GIDs: []uint32{uint32(os.Getegid())}, // core, when it is another user's: it is given the group
	}, admin.Deps{Handler: u.handler(), Log: base.log, Metrics: base.registry})
	if err != nil {
		return err
	}
	return c.runApart(con, base, []run.Task{socket}, func(ctx context.Context) error { return u.follow(ctx, hangup) })
}

func newScriptUnit(base *foundation) (*scriptUnit, error) {
	if base.path == "" {
		return nil, errors.New("there is no cluster file, so there are no script checks for the unit scripts to run")
	}
	if err := trustworthy(base.path); err != nil {
		return nil, err
	}
	services, err := discovery.ServicesFrom(base.source.Current(), base.self.Name)
	if err != nil {
		return nil, err
	}
	u := &scriptUnit{base: base}
	if u.commands, err = command.New(slices.Concat(scriptDirs, scripts(services))...); err != nil {
		return nil, err
	}
	u.scripts = check.NewScripts(check.ScriptsDeps{
		Commands: u.commands, Metrics: base.registry,
		Reload: func() error { _, err := u.reload(); return err },
	})
	return u, u.set(services)
}

// trustworthy refuses a cluster file that core could write, were it taken over:
// it says what runs as whom.
func trustworthy(path string) error {
	if err := command.OnlyOurs(path); err != nil {
		return fmt.Errorf("the cluster file says which scripts run, and must belong to root: %w", err)
	}
	return nil
}

// set takes over the services of a cluster file.
func (u *scriptUnit) set(services []discovery.ServiceDefinition) error {
	var definitions []check.Definition
	for _, service := range services {
		definitions = append(definitions, service.Checks...)
	}
	if err := u.scripts.Set(definitions); err != nil {
		return err
	}
	var waiting []string
	for _, program := range scripts(services) {
		if errors.Is(u.commands.Allowed(program), command.ErrNotAllowed) {
			waiting = append(waiting, program)
		}
	}
	if len(waiting) == 0 {
		u.base.board.Clear(conditionRestart)
		return nil
	}
	u.base.board.Raise(conditionRestart, health.Warning, "the unit scripts may not run "+strings.Join(waiting, ", ")+": a program that is new in the cluster file needs a restart of the unit")
	return nil
}

// reload reads the cluster file again. One with mistakes, or that others may
// write, changes nothing.
func (u *scriptUnit) reload() (cluster.Change, error) {
	u.reloading.Lock()
	defer u.reloading.Unlock()
	if err := trustworthy(u.base.path); err != nil {
		return cluster.Change{}, err
	}
	change, err := u.base.source.Reload()
	if err != nil {
		return change, err
	}
	services, err := discovery.ServicesFrom(u.base.source.Current(), u.base.self.Name)
	if err != nil {
		return change, err
	}
	return change, u.set(services)
}

// follow reloads the cluster file at every signal.
func (u *scriptUnit) follow(ctx context.Context, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
		}
		change, err := u.reload()
		if err != nil {
			u.base.log.Error("the cluster file was not reloaded", "path", u.base.path, "error", err)
			continue
		}
		u.base.log.Info("cluster file reloaded", "path", u.base.path, "changed", change.Details)
	}
}

// handler is the unit's HTTP tree.
func (u *scriptUnit) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", u.scripts.Handler())
	mux.HandleFunc("GET /v1/unit", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"unit": onlyScripts, "conditions": u.base.board.Conditions()}) // who asked is gone: nobody to tell
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(u.base.registry, promhttp.HandlerOpts{}))
	return mux
}

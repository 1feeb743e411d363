package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"holdfast/cluster"
	"holdfast/internal/admin"
	"holdfast/internal/kernel/command"
	"holdfast/internal/run"
	"holdfast/internal/state"
	"holdfast/lb"
	"holdfast/vrrp"
)

// network is the net unit's tasks: the virtual routers, the load balancer
// behind them, and their admin socket.
type network struct {
	routers  *vrrp.Service
	given    *handover // tells of addresses that go on purpose
	balancer *lb.Service
	socket   *admin.Server
	admin    http.Handler // what net.sock and the API show of the addresses
	// commands allows the programs that the file named at the start.
	commands *command.Runner
}

// tasks are stopped from the last: the log relay's clients are heard out, then
// addresses move, before their balancer ends.
func (n *network) tasks() []run.Task { return []run.Task{n.socket, n.balancer, n.routers, n.given} }

// newNetwork makes the virtual routers of this node.
func (c *agentCmd) newNetwork(base *foundation, store shared) (*network, error) {
	settings, err := c.routers(base.source.Current(), base.self.Name)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	n := &network{}
	if n.commands, err = command.New(settings.Programs()...); err != nil {
		return nil, &exitError{exitUsage, err}
	}
	if err := c.newBalancer(base, n, store); err != nil {
		return nil, err
	}
	n.routers, err = vrrp.New(vrrp.Config{
		Node: base.self.Name, RunDir: c.RunDir, Settings: settings,
		Guard: []string{"vip", "guard", "--run-dir", c.RunDir, "--log-format", c.LogFormat},
	}, vrrp.Deps{
		Commands: n.commands, Log: base.log, Metrics: base.registry, Board: base.board,
		Holds: n.balancer.Holds, Keeps: n.balancer.Keeps,
		Store: vrrp.Store{Reader: store.reader, Proposer: store.proposer},
	})
	if err != nil {
		return nil, err
	}
	n.given = c.handsOver(base, n.routers)
	n.admin = newVIPAdmin(base, n.routers, n.given)
	handler := n.handler(base)
	if store.replica != nil {
		handler = unitHandler(base, store.replica, handler)
	}
	n.socket, err = admin.New(admin.Config{Unit: onlyNet, Path: filepath.Join(c.RunDir, "net.sock")},
		admin.Deps{Handler: handler, Log: base.log, Metrics: base.registry})
	return n, err
}

// standBack keeps the addresses away while the node is drained.
func (n *network) standBack(base *foundation, store state.Reader) *standBack {
	return &standBack{node: base.self.Name, state: store, routers: n.routers, hearOut: n.given.together, log: base.log.With("service", "vrrp")}
}

// routers are what the file says about this node's virtual routers. A node
// that is a cluster of its own has none.
func (c *agentCmd) routers(file *cluster.File, node string) (vrrp.Settings, error) {
	if file.Node(node) == nil {
		return vrrp.Settings{}, nil
	}
	return vrrp.SettingsFrom(file, node)
}

// handler is the net unit's HTTP tree.
func (n *network) handler(base *foundation) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(vrrp.AdminPath, n.admin)
	mux.Handle(lb.AdminPath, n.balancer.Handler())
	mux.Handle("GET /metrics", promhttp.HandlerFor(base.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// apply takes over a cluster file. It tells which programs wait for a restart,
// since what may run is fixed while the agent runs.
func (n *network) apply(file *cluster.File, node string) (waiting []string, err error) {
	settings, err := vrrp.SettingsFrom(file, node)
	if err != nil {
		return nil, err
	}
	for _, program := range settings.Programs() {
		if errors.Is(n.commands.Allowed(program), command.ErrNotAllowed) {
			waiting = append(waiting, "program "+program)
		}
	}
	balance, err := balanced(file, node)
	if err == nil {
		err = n.balancer.Reconfigure(balance)
	}
	return waiting, errors.Join(err, n.routers.Reconfigure(settings))
}

// runNet runs the net unit alone: no store, no gossip, no API and no certificates.
// What the store says, such as who is drained, core streams.
func (c *agentCmd) runNet(con *console, hangup <-chan os.Signal) error {
	base, err := c.lay(con)
	if err != nil {
		return err
	}
	if pid, err := vrrp.Running(c.RunDir); err == nil && pid != 0 {
		return &exitError{exitUsage, fmt.Errorf("%w in %s: process %d; stop it first, or give this one another --run-dir", vrrp.ErrRunning, c.RunDir, pid)}
	}
	replica, err := c.newReplica(base)
	if err != nil {
		return err
	}
	n, err := c.newNetwork(base, shared{replica.Store(), replica, replica})
	if err != nil {
		return err
	}
	tasks := append([]run.Task{replica, n.standBack(base, replica.Store())}, n.tasks()...)
	err = c.runApart(con, base, tasks, func(ctx context.Context) error { return n.follow(ctx, base, hangup) })
	return errors.Join(err, n.ended())
}

// ended is the exit status that has a successor started.
func (n *network) ended() error {
	if !n.routers.Suspended() {
		return nil
	}
	return &exitError{exitRestart, errors.New("ended for a restart: the virtual addresses wait for a successor")}
}

// follow reloads the cluster file at every signal.
func (n *network) follow(ctx context.Context, base *foundation, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
		}
		change, err := base.source.Reload()
		var waiting []string
		if err == nil {
			waiting, err = n.apply(base.source.Current(), base.self.Name)
		}
		if err != nil {
			base.log.Error("the cluster file was not reloaded", "path", base.path, "error", err)
			continue
		}
		base.log.Info("cluster file reloaded", "path", base.path, "changed", change.Details, "restart", waiting)
	}
}

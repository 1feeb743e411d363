package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/internal/admin"
	"holdfast/internal/run"
	"holdfast/internal/state"
	"holdfast/internal/stream"
	"holdfast/raftstore"
	"holdfast/vrrp"
)

// The units that can run alone.
const (
	onlyCore = "core"
	onlyDNS  = "dns"
	onlyNTP  = "ntp"
	onlyAPT  = "apt"
	onlyLogs = "logs"
	onlyNet  = "net" // it moves addresses and runs nothing else

	onlyScripts = "scripts" // it has no state at all
)

// grants are what the units that follow core may see and write, beside the
// catalog that all of them see.
func grants() stream.Grants {
	return stream.Grants{
		onlyDNS:  {Kinds: []string{"dns/record", "dns/file"}},
		onlyNTP:  {},
		onlyAPT:  {Kinds: []string{"apt/view", "apt/view-before"}},
		onlyLogs: {},
		onlyNet:  {Kinds: []string{"lb/drain", "lb/people", vrrp.KindLease}},
	}
}

func (c *agentCmd) stateSocket() string { return filepath.Join(c.RunDir, "state.sock") }

// newStateSource streams the state to the units beside this process, and of a
// server to the nodes that have none of their own.
func (c *agentCmd) newStateSource(base *foundation, h *heart) (*admin.Server, error) {
	source, err := stream.NewSource(stream.SourceDeps{
		State: h.state, Proposer: h.proposer, Leader: h.leader, Grants: grants(), Log: base.log, Metrics: base.registry,
	})
	if err != nil {
		return nil, err
	}
	if h.nodes != nil {
		*h.nodes = source.ForNodes(nodePart(), func(r *http.Request) (string, error) {
			return mayFollow(base.source.Current(), raftstore.FollowerOf(r))
		}, func(node string, d state.PutDocument) error { return nodeWrites(base.source.Current(), node, d) })
	}
	var handler http.Handler = source
	if h.follows != nil {
		handler = unitHandler(base, h.follows, source)
	}
	return admin.New(admin.Config{Unit: "state", Path: c.stateSocket()}, admin.Deps{Handler: handler, Log: base.log, Metrics: base.registry})
}

// vipsElsewhere asks the net unit of this node about its virtual addresses.
func (c *agentCmd) vipsElsewhere(base *foundation) http.Handler {
	return tellsOthers(askToLeave(base, leaveByTLS(base)), c.elsewhere(onlyNet))
}

// elsewhere passes requests on to another unit of this node.
func (c *agentCmd) elsewhere(unit string) http.Handler {
	there, _ := url.Parse(admin.BaseURL) // a constant
	proxy := httputil.NewSingleHostReverseProxy(there)
	proxy.Transport = admin.Client(filepath.Join(c.RunDir, unit+".sock")).Transport
	proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, "the unit "+unit+" does not answer: "+err.Error(), http.StatusServiceUnavailable)
	}
	return proxy
}

// unit is one that follows core.
type unit struct {
	tasks   []run.Task
	setFile func(*cluster.File)
}

// runUnit runs a unit that follows core: with the state that core streams, and
// without core with the last that is on the disk.
func (c *agentCmd) runUnit(con *console, hangup <-chan os.Signal) error {
	base, err := c.lay(con)
	if err != nil {
		return err
	}
	replica, err := c.newReplica(base)
	if err != nil {
		return err
	}
	if c.Only == onlyLogs { // it speaks to other nodes
		if err := c.trusting(base); err != nil {
			return err
		}
	}
	u, err := c.newUnit(base, replica)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	tasks := slices.Concat([]run.Task{replica}, u.tasks, base.renewing())
	return c.runApart(con, base, tasks, func(ctx context.Context) error { return u.follow(ctx, base, hangup) })
}

// newReplica follows core, and has at once what the disk has.
func (c *agentCmd) newReplica(base *foundation) (*stream.Replica, error) {
	return stream.New(stream.Config{
		Unit: c.Only, Base: admin.BaseURL, Web: admin.Client(c.stateSocket()), Path: filepath.Join(c.DataDir, "state."+c.Only),
		Optional: c.Only == onlyNet,
	}, stream.Deps{Log: base.log, Metrics: base.registry, Board: base.board})
}

// runApart runs the tasks of a unit that has a process of its own, and beside
// them what follows the cluster file.
func (c *agentCmd) runApart(con *console, base *foundation, tasks []run.Task, follow func(context.Context) error) error {
	base.log.Info("starting", "version", version, "node", base.self.Name, "cluster", base.source.Current().Name, "only", c.Only)
	tasks = append(tasks, run.Func("reload", func(ctx context.Context, ready func()) error {
		ready()
		return follow(ctx)
	}))
	return base.run(con.ctx, tasks)
}

// newUnit makes the service of a unit and its admin socket.
func (c *agentCmd) newUnit(base *foundation, replica *stream.Replica) (*unit, error) {
	file := base.source.Current()
	config, err := api.ConfigFrom(file, file.Section("api"), base.self.Name, false)
	if err != nil {
		return nil, err
	}
	switch c.Only {
	case onlyDNS:
		names, err := c.newNames(base, replica.Store(), replica, replica.Leader, tellByCore(c.socket()))
		if err != nil {
			return nil, err
		}
		socket, err := c.newNamesAdmin(base, unitHandler(base, replica, names.Handler()), config.AdminGroups)
		return &unit{[]run.Task{names, socket}, names.SetFile}, err
	case onlyNTP:
		clock, err := c.newNTP(base, replica.Store(), replica.Leader)
		if err != nil {
			return nil, err
		}
		socket, err := c.newNTPAdmin(base, unitHandler(base, replica, clock.Handler()), config.AdminGroups)
		return &unit{[]run.Task{clock, socket}, clock.SetFile}, err
	case onlyLogs:
		logs, err := c.newLogs(base, replica.Store(), config.AdminGroups, func(h http.Handler) http.Handler { return unitHandler(base, replica, h) })
		if err != nil {
			return nil, err
		}
		if logs.tasks == nil {
			return nil, fmt.Errorf("%s has role %s, which does not run logs", base.self.Name, base.self.Role)
		}
		return &unit{logs.tasks, logs.setFile}, nil
	}
	packages, err := c.newPackages(base, replica.Store(), replica)
	if err != nil {
		return nil, err
	}
	socket, err := c.newPackagesAdmin(base, unitHandler(base, replica, packages.Handler()), config.AdminGroups)
	return &unit{[]run.Task{packages, socket}, packages.SetFile}, err
}

// unitStatus is what a unit tells of itself.
type unitStatus struct {
	stream.Status
	Conditions any `json:"conditions"`
}

// unitHandler adds to a service's admin tree what its process tells of itself.
func unitHandler(base *foundation, replica *stream.Replica, service http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", service)
	mux.HandleFunc("GET /v1/unit", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(unitStatus{replica.Status(), base.board.Conditions()}) // who asked is gone: nobody to tell
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(base.registry, promhttp.HandlerOpts{}))
	return mux
}

// follow reloads the cluster file, and the certificates, at every signal.
func (u *unit) follow(ctx context.Context, base *foundation, signals <-chan os.Signal) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
		}
		base.certificates.soon()
		change, err := base.source.Reload()
		if err != nil {
			base.log.Error("the cluster file was not reloaded", "path", base.path, "error", err)
			continue
		}
		u.setFile(base.source.Current())
		base.log.Info("cluster file reloaded", "path", base.path, "changed", change.Details)
	}
}

type dnsStatusCmd struct{ dnsSocket }

func (*dnsStatusCmd) Help() string {
	return "Of a unit of its own (holdfast agent --only dns). Exit status 6 while no leader has confirmed its state for ten seconds.\n\nExample: holdfast dns status"
}

func (c *dnsStatusCmd) Run(con *console) error {
	var status stream.Status
	err := c.ask(con.ctx, "GET", "/v1/unit", nil, &status)
	if e, ok := errors.AsType[*exitError](err); ok && e.status == exitNotFound {
		return &exitError{exitNotFound, errors.New("DNS is no unit of its own here: holdfast status tells about the agent")}
	}
	if err != nil {
		return err
	}
	if c.JSON {
		err = con.json(status)
	} else {
		_, err = fmt.Fprintln(con.out, unitText(status))
	}
	if err == nil && (!status.Confirmed || status.Age > 10*time.Second) {
		err = &exitError{exitDegraded, errors.New("the state is not fresh")}
	}
	return err
}

// unitText is a line about where a unit has its state from.
func unitText(s stream.Status) string {
	source := "core"
	if s.Source != "" {
		source = printable(s.Source)
	}
	from, age := source+" does not stream: "+printable(s.Error), "no state of the cluster"
	if s.Connected {
		from = source + " streams, for " + ago(time.Since(s.Since))
	}
	if s.Confirmed {
		age = "a leader confirmed the state " + ago(s.Age) + " ago"
	}
	if s.FromDisk {
		age += " (it was read from the disk)"
	}
	return fmt.Sprintf("%s: %s; %s", s.Unit, from, age)
}

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/aptproxy"
	"holdfast/cluster"
	"holdfast/discovery"
	"holdfast/dns"
	"holdfast/internal/admin"
	"holdfast/internal/heap"
	"holdfast/internal/kernel/command"
	"holdfast/internal/peer"
	"holdfast/internal/run"
	"holdfast/internal/state"
	"holdfast/internal/stream"
	"holdfast/lb"
	"holdfast/logrelay"
	"holdfast/ntpproxy"
	"holdfast/raftstore"
	"holdfast/vrrp"
)

// scriptDirs are where script checks may be, beside what the cluster file
// itself names at the start of the agent.
var scriptDirs = []string{"/etc/holdfast/checks/", "/usr/lib/nagios/plugins/"}

// sections are the parts of the cluster file that services own.
func sections() map[string]cluster.SectionValidator {
	return map[string]cluster.SectionValidator{
		"api":        api.ValidateSection,
		"apt":        aptproxy.ValidateSection,
		"dns":        dns.ValidateSection,
		lb.Section:   lb.ValidateSection,
		"logs":       logrelay.ValidateSection,
		"ntp":        ntpproxy.ValidateSection,
		"raft":       raftstore.ValidateSection,
		"vips":       vrrp.ValidateVIPs,
		vrrp.Section: vrrp.ValidateSection,
		"services": func(f *cluster.File, _ cluster.Section) error {
			return discovery.ValidateServices(f)
		},
	}
}

// agent is the agent's tasks, wired.
type agent struct {
	tasks   []run.Task
	network *network
	reload  *reloader
}

// heart is what an agent has the state from, and takes part in the cluster with:
// its own store, or a server's.
type heart struct {
	nodeID   string
	state    *state.Store
	proposer state.Proposer
	raft     api.Raft
	leader   func() string // the leader's name; "" nobody
	members  *discovery.Agent
	leave    api.Agent
	commands *command.Runner
	packages *aptproxy.Server
	http     api.Config
	tasks    []run.Task
	follows  *stream.Replica // a server's; nil: the store is here
	// nodes is set to what answers the nodes that follow; nil: none can.
	nodes *http.Handler
}

// runsAgent refuses a node that is a client only.
func runsAgent(base *foundation) error {
	if !base.source.Current().Role(base.self.Role).Agent {
		return fmt.Errorf("%s has role %s, which runs no agent (agent: false)", base.self.Name, base.self.Role)
	}
	return nil
}

// assemble makes the tasks and wires them. It starts nothing but reads
// secrets and the node's identity. end ends the agent: after it has left.
func (c *agentCmd) assemble(base *foundation, end context.CancelFunc) (*agent, error) {
	file := base.source.Current()
	services, err := discovery.ServicesFrom(file, base.self.Name)
	if err != nil {
		return nil, err
	}
	h := &heart{}
	if h.commands, err = command.New(slices.Concat(scriptDirs, scripts(services))...); err != nil {
		return nil, err
	}
	if err := raftstore.FinishSetAside(c.DataDir); err != nil {
		return nil, err
	}
	if h.nodeID, err = discovery.NodeID(c.DataDir); err != nil {
		return nil, err
	}
	if h.http, err = c.httpConfig(base, h.nodeID); err != nil {
		return nil, err
	}
	if file.Role(base.self.Role).Voters > 0 {
		err = c.beServer(base, h, services, end)
	} else {
		err = c.beFollower(base, h, services, end)
	}
	if err != nil {
		return nil, err
	}
	return c.compose(base, h)
}

// beServer gives the agent a store of its own.
func (c *agentCmd) beServer(base *foundation, h *heart, services []discovery.ServiceDefinition, end context.CancelFunc) error {
	h.state, h.nodes = state.New(), new(http.Handler)
	store, err := c.newStore(base, h, func(id string) { h.members.SetClusterID(id) },
		raftstore.Consumer{
			Name:  "the package proxy",
			Bytes: func() int64 { return h.packages.Stored() },
			Shed:  func(want int64) int64 { return h.packages.Shed(want) },
		})
	if err != nil {
		return err
	}
	h.proposer, h.raft = store, store
	h.leader = func() string { name, _, _ := store.Leader(); return name }
	if h.members, err = c.newMembers(base, h, store, services); err != nil {
		return err
	}
	h.leave = leaver{Agent: h.members, store: store, replica: h.state, id: h.nodeID, end: end}
	h.tasks = []run.Task{heap.New(), store, h.members}
	return nil
}

// compose makes what stands on the heart.
func (c *agentCmd) compose(base *foundation, h *heart) (*agent, error) {
	file := base.source.Current()
	var door *api.Server // made last: it answers for all
	explains := func(service string) []string {
		if e, ok := door.ExplainService(service); ok {
			return e.Lines()
		}
		return tellByCore(c.socket())(service)
	}
	names, err := c.newNames(base, h.state, h.proposer, h.leader, explains)
	if err != nil {
		return nil, err
	}
	var net *network
	vips := c.vipsElsewhere(base)
	if c.Only == "" {
		if net, err = c.newNetwork(base, shared{h.state, h.proposer, nil}); err != nil {
			return nil, err
		}
		vips = net.admin
	}
	clock, err := c.newNTP(base, h.state, h.leader)
	if err != nil {
		return nil, err
	}
	if h.packages, err = c.newPackages(base, h.state, h.proposer); err != nil {
		return nil, err
	}
	reload := &reloader{
		source: base.source, path: base.path, node: base.self.Name, started: file, loaded: time.Now(),
		board: base.board, log: base.log, certificates: base.certificates, members: h.members, names: names, clock: clock, packages: h.packages, network: net, commands: h.commands,
	}
	joins, err := c.openJoiner(base, func() *discovery.Agent { return h.members })
	if err != nil {
		return nil, err
	}
	logs := &logService{setFile: func(*cluster.File) {}}
	if c.Only != "" && slices.Contains(file.Role(base.self.Role).Run, "logs") {
		logs.handler = c.elsewhere(onlyLogs)
	}
	if c.Only == "" {
		if logs, err = c.newLogs(base, h.state, h.http.AdminGroups, nil); err != nil {
			return nil, err
		}
	}
	reload.logs = logs.setFile
	if door, err = newAPI(base, h, reload, trees{saidBy(base.trust, vips), logs.handler}, joins); err != nil {
		return nil, err
	}
	source, err := c.newStateSource(base, h)
	if err != nil {
		return nil, err
	}
	tasks := append(h.tasks, door.Socket(), door, source)
	runs := func(service string) bool {
		return c.Only == "" && slices.Contains(file.Role(base.self.Role).Run, service)
	}
	if runs("dns") {
		socket, err := c.newNamesAdmin(base, names.Handler(), h.http.AdminGroups)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, names, socket)
	}
	if runs("ntp") {
		socket, err := c.newNTPAdmin(base, clock.Handler(), h.http.AdminGroups)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, clock, socket)
	}
	if runs("apt") {
		socket, err := c.newPackagesAdmin(base, h.packages.Handler(), h.http.AdminGroups)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, h.packages, socket)
	}
	tasks = append(tasks, logs.tasks...)
	// Last, so that it ends first: addresses are handed over while what they
	// stand for still answers.
	if net != nil {
		tasks = append(tasks, net.standBack(base, h.state))
		tasks = append(tasks, net.tasks()...)
	}
	return &agent{tasks: tasks, network: net, reload: reload}, nil
}

func (c *agentCmd) newStore(base *foundation, h *heart, announce func(string), consumers ...raftstore.Consumer) (*raftstore.Store, error) {
	file := base.source.Current()
	config, err := raftstore.ConfigFrom(file, file.Section("raft"))
	if err != nil {
		return nil, err
	}
	config.Node, config.NodeID, config.DataDir = base.self.Name, h.nodeID, c.DataDir
	config.Listen = netip.AddrPortFrom(c.mainAddr(base), c.RPCPort)
	config.SetAside = func() error { return c.beginAnew(base) }
	config.Version, config.Consumers = version, consumers
	config.Trust, config.Insecure = base.trust, c.Insecure
	if base.trust != nil {
		config.BackupKey = func() ([]byte, error) {
			keys, err := discovery.GossipKeys(c.DataDir, base.trust.GossipKey())
			if err != nil || len(keys) == 0 {
				return nil, err
			}
			return keys[0], nil
		}
	}
	config.MaxSnapshot, config.Announce = h.http.MaxSnapshot, announce
	config.Follow = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*h.nodes).ServeHTTP(w, r) })
	return raftstore.New(config, h.state, raftstore.Deps{Log: base.log, Metrics: base.registry, Board: base.board})
}

// newMembers takes part in the gossip; of a node that is no server led says when
// its source of the state changed.
func (c *agentCmd) newMembers(base *foundation, h *heart, led discovery.Leadership, services []discovery.ServiceDefinition) (*discovery.Agent, error) {
	file := base.source.Current()
	config := discovery.Config{
		Node: base.self.Name, NodeID: h.nodeID, Address: c.mainAddr(base), Port: c.GossipPort,
		Cluster: file.Name, Insecure: c.Insecure, DataDir: c.DataDir,
		Version: version, Feature: state.FeatureLevel, ConfigSum: file.Sum,
		Meta: map[string]string{"role": base.self.Role}, Services: services,
	}
	if h.nodes != nil {
		config.Server, config.RPC = true, netip.AddrPortFrom(c.mainAddr(base), c.RPCPort)
	}
	if base.trust != nil {
		config.Key = base.trust.GossipKey()
	}
	for _, server := range file.Servers() {
		config.Join = append(config.Join, netip.AddrPortFrom(server.Addresses[file.Main().Name], c.GossipPort))
	}
	return discovery.New(config, discovery.Deps{
		State: h.state, Proposer: h.proposer, Leadership: led, Commands: h.commands, Scripts: c.scriptsApart(base).Probe,
		Log: base.log, Metrics: base.registry, Board: base.board,
	})
}

// scripts are the programs of the services' script checks.
func scripts(services []discovery.ServiceDefinition) []string {
	var programs []string
	for _, service := range services {
		for _, check := range service.Checks {
			if len(check.Script) > 0 {
				programs = append(programs, check.Script[0])
			}
		}
	}
	return programs
}

// newNames makes the DNS server; explains tells in lines why a name gives what it
// gives.
func (c *agentCmd) newNames(base *foundation, replica *state.Store, proposer state.Proposer, leader func() string, explains func(service string) []string) (*dns.Server, error) {
	listen, err := addrPorts(c.DNSListen, 53)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--dns-listen: %w", err)}
	}
	return dns.New(dns.Config{Node: base.self.Name, Listen: listen}, dns.Deps{
		State: replica, File: base.source.Current(), Log: base.log, Metrics: base.registry, Board: base.board,
		Proposer: proposer, Leads: func() bool { return leader() == base.self.Name }, Explain: explains,
	})
}

// newNamesAdmin answers `holdfast dns`.
func (c *agentCmd) newNamesAdmin(base *foundation, handler http.Handler, groups []uint32) (*admin.Server, error) {
	return admin.New(admin.Config{Unit: "dns", Path: filepath.Join(c.RunDir, "dns.sock"), GIDs: groups},
		admin.Deps{Handler: handler, Log: base.log, Metrics: base.registry})
}

// httpConfig is where the API answers and within which limits.
func (c *agentCmd) httpConfig(base *foundation, nodeID string) (api.Config, error) {
	file := base.source.Current()
	config, err := api.ConfigFrom(file, file.Section("api"), base.self.Name, base.trust != nil && base.path != "")
	if err != nil {
		return api.Config{}, &exitError{exitUsage, err}
	}
	config.NodeID, config.Version = nodeID, version
	config.Server = file.Role(base.self.Role).Voters > 0
	config.GossipPort, config.Socket = c.GossipPort, c.socket()
	if len(c.HTTPListen) > 0 {
		if config.Listen, err = addrPorts(c.HTTPListen, 8500); err != nil {
			return api.Config{}, &exitError{exitUsage, fmt.Errorf("--http-listen: %w", err)}
		}
	}
	if len(c.HTTPSListen) > 0 {
		if config.HTTPS, err = addrPorts(c.HTTPSListen, 8501); err != nil {
			return api.Config{}, &exitError{exitUsage, fmt.Errorf("--https-listen: %w", err)}
		}
	}
	return config, nil
}

// trees are what services answer below the API; nil: they are not there.
type trees struct{ vips, logs http.Handler }

func newAPI(base *foundation, h *heart, reload *reloader, below trees, joins api.Joiner) (*api.Server, error) {
	deps := api.Deps{
		State: h.state, Outcomes: h.state, Proposer: h.proposer, Agent: h.leave, Raft: h.raft, Config: reload, VIPs: below.vips, Relay: below.logs, Joiner: joins, Logs: base.tail,
		Conditions: base.board.Conditions, Gatherer: base.registry, Metrics: base.registry, Log: base.log,
	}
	if base.trust != nil {
		deps.TLS = base.trust.ServerOptional()
		deps.Admin, deps.Peer = certified(base.trust, peer.RoleAdmin), certified(base.trust, peer.RoleServer)
		deps.Member = fellowMember(base.trust, base.source.Current)
	}
	return api.New(h.http, deps)
}

// certified tells whether a request's certificate, verified by TLS and of an
// authority that is still trusted, is that of one of these.
func certified(trust *peer.Trust, roles ...peer.Role) func(*http.Request) bool {
	return func(r *http.Request) bool {
		identity, err := trust.PeerIdentity(tlsState(r))
		return err == nil && slices.Contains(roles, identity.Role)
	}
}

func tlsState(r *http.Request) tls.ConnectionState {
	if r.TLS == nil {
		return tls.ConnectionState{}
	}
	return *r.TLS
}

// mainAddr is the node's address on the main network.
func (c *agentCmd) mainAddr(base *foundation) netip.Addr {
	return base.self.Addresses[base.source.Current().Main().Name]
}

func (c *agentCmd) socket() string { return filepath.Join(c.RunDir, "core.sock") }

// addrPorts reads where to listen; usual is the service's port, for advice.
func addrPorts(texts []string, usual uint16) ([]netip.AddrPort, error) {
	var list []netip.AddrPort
	for _, text := range texts {
		addr, err := netip.ParseAddrPort(text)
		if err != nil {
			example := netip.AddrFrom4([4]byte{127, 0, 0, 1})
			if meant, err := netip.ParseAddr(text); err == nil {
				example = meant
			}
			return nil, fmt.Errorf("%q is no ADDR:PORT, such as %s", text, netip.AddrPortFrom(example, usual))
		}
		list = append(list, addr)
	}
	return list, nil
}

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
	"holdfast/internal/kernel/command"
	"holdfast/internal/peer"
	"holdfast/internal/run"
	"holdfast/internal/state"
	"holdfast/lb"
	"holdfast/logrelay"
	"holdfast/ntpproxy"
	"holdfast/raftstore"
	"holdfast/vrrp"
)

// feature is the highest feature level this program offers; see
// docs/ARCHITECTURE.md, "Growing".
const feature = 1

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

// runsWhole refuses a node that may run parts of the agent only.
func runsWhole(base *foundation) error {
	if base.source.Current().Role(base.self.Role).Voters == 0 {
		return fmt.Errorf("%s has role %s, which has no voters: this version runs its whole agent on servers only; "+
			"virtual addresses and the load balancer run with --only net", base.self.Name, base.self.Role)
	}
	return nil
}

// assemble makes the tasks and wires them. It starts nothing but reads
// secrets and the node's identity. end ends the agent: after it has left.
func (c *agentCmd) assemble(base *foundation, end context.CancelFunc) (*agent, error) {
	file := base.source.Current()
	if err := raftstore.FinishSetAside(c.DataDir); err != nil {
		return nil, err
	}
	nodeID, err := discovery.NodeID(c.DataDir)
	if err != nil {
		return nil, err
	}
	replica := state.New()
	var members *discovery.Agent // made after the store, which announces itself to it
	var packages *aptproxy.Server
	httpConfig, err := c.httpConfig(base, nodeID)
	if err != nil {
		return nil, err
	}
	store, err := c.newStore(base, replica, nodeID, httpConfig.MaxSnapshot, func(id string) { members.SetClusterID(id) },
		raftstore.Consumer{
			Name:  "the package proxy",
			Bytes: func() int64 { return packages.Stored() },
			Shed:  func(want int64) int64 { return packages.Shed(want) },
		})
	if err != nil {
		return nil, err
	}
	services, err := discovery.ServicesFrom(file, base.self.Name)
	if err != nil {
		return nil, err
	}
	commands, err := command.New(slices.Concat(scriptDirs, scripts(services))...)
	if err != nil {
		return nil, err
	}
	if members, err = c.newMembers(base, replica, store, nodeID, services, commands); err != nil {
		return nil, err
	}
	leader := func() string { name, _, _ := store.Leader(); return name }
	var door *api.Server // made last: it answers for all
	explains := func(service string) []string {
		if e, ok := door.ExplainService(service); ok {
			return e.Lines()
		}
		return nil
	}
	names, err := c.newTellingNames(base, replica, store, leader, explains)
	if err != nil {
		return nil, err
	}
	var net *network
	vips := c.vipsElsewhere()
	if c.Only == "" {
		if net, err = c.newNetwork(base, shared{replica, store}); err != nil {
			return nil, err
		}
		vips = net.admin
	}
	clock, err := c.newNTP(base, replica, leader)
	if err != nil {
		return nil, err
	}
	if packages, err = c.newPackages(base, replica, store); err != nil {
		return nil, err
	}
	reload := &reloader{
		source: base.source, path: base.path, node: base.self.Name, started: file, loaded: time.Now(),
		board: base.board, log: base.log, members: members, names: names, clock: clock, packages: packages, network: net, commands: commands,
	}
	leave := leaver{Agent: members, store: store, replica: replica, id: nodeID, end: end}
	joins, err := c.openJoiner(base, func() *discovery.Agent { return members })
	if err != nil {
		return nil, err
	}
	logs, relay, err := c.newLogs(base, replica, httpConfig.AdminGroups)
	if err != nil {
		return nil, err
	}
	door, err = newAPI(base, httpConfig, replica, store, leave, reload, trees{vips, relay}, joins)
	if err != nil {
		return nil, err
	}
	source, err := c.newStateSource(base, replica, store, leader)
	if err != nil {
		return nil, err
	}
	tasks := []run.Task{store, members, door, source}
	runs := func(service string) bool {
		return c.Only == "" && slices.Contains(file.Role(base.self.Role).Run, service)
	}
	if runs("dns") {
		socket, err := c.newNamesAdmin(base, names.Handler(), httpConfig.AdminGroups)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, names, socket)
	}
	if runs("ntp") {
		socket, err := c.newNTPAdmin(base, clock.Handler(), httpConfig.AdminGroups)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, clock, socket)
	}
	if runs("apt") {
		socket, err := c.newPackagesAdmin(base, packages.Handler(), httpConfig.AdminGroups)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, packages, socket)
	}
	tasks = append(tasks, logs...)
	// Last, so that it ends first: addresses are handed over while what they
	// stand for still answers.
	if net != nil {
		tasks = append(tasks, &standBack{node: base.self.Name, state: replica, routers: net.routers, log: base.log.With("service", "vrrp")})
		tasks = append(tasks, net.tasks()...)
	}
	return &agent{tasks: tasks, network: net, reload: reload}, nil
}

func (c *agentCmd) newStore(base *foundation, replica *state.Store, nodeID string, maxSnapshot int64, announce func(string), consumers ...raftstore.Consumer) (*raftstore.Store, error) {
	file := base.source.Current()
	config, err := raftstore.ConfigFrom(file, file.Section("raft"))
	if err != nil {
		return nil, err
	}
	config.Node, config.NodeID, config.DataDir = base.self.Name, nodeID, c.DataDir
	config.Listen = netip.AddrPortFrom(c.mainAddr(base), c.RPCPort)
	config.SetAside = func() error { return c.beginAnew(base) }
	config.Version, config.Consumers = version, consumers
	config.Trust, config.Insecure = base.trust, c.Insecure
	config.MaxSnapshot, config.Announce = maxSnapshot, announce
	return raftstore.New(config, replica, raftstore.Deps{Log: base.log, Metrics: base.registry, Board: base.board})
}

func (c *agentCmd) newMembers(base *foundation, replica *state.Store, store *raftstore.Store, nodeID string, services []discovery.ServiceDefinition, commands *command.Runner) (*discovery.Agent, error) {
	file := base.source.Current()
	config := discovery.Config{
		Node: base.self.Name, NodeID: nodeID, Address: c.mainAddr(base), Port: c.GossipPort,
		Server: true, RPC: netip.AddrPortFrom(c.mainAddr(base), c.RPCPort),
		Cluster: file.Name, Insecure: c.Insecure, DataDir: c.DataDir,
		Version: version, Feature: feature, ConfigSum: file.Sum,
		Meta: map[string]string{"role": base.self.Role}, Services: services,
	}
	if base.trust != nil {
		config.Key = base.trust.GossipKey()
	}
	for _, server := range file.Servers() {
		config.Join = append(config.Join, netip.AddrPortFrom(server.Addresses[file.Main().Name], c.GossipPort))
	}
	return discovery.New(config, discovery.Deps{
		State: replica, Proposer: store, Leadership: store, Commands: commands,
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

func (c *agentCmd) newNames(base *foundation, replica *state.Store, proposer state.Proposer, leader func() string) (*dns.Server, error) {
	return c.newTellingNames(base, replica, proposer, leader, nil)
}

// newTellingNames is newNames where somebody can explain the answers.
func (c *agentCmd) newTellingNames(base *foundation, replica *state.Store, proposer state.Proposer, leader func() string, explains func(service string) []string) (*dns.Server, error) {
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
	config.NodeID, config.Version, config.Server = nodeID, version, true
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

func newAPI(base *foundation, config api.Config, replica *state.Store, store *raftstore.Store, members api.Agent, reload *reloader, below trees, joins api.Joiner) (*api.Server, error) {
	deps := api.Deps{
		State: replica, Outcomes: replica, Proposer: store, Agent: members, Raft: store, Config: reload, VIPs: below.vips, Relay: below.logs, Joiner: joins, Logs: base.tail,
		Conditions: base.board.Conditions, Gatherer: base.registry, Metrics: base.registry, Log: base.log,
	}
	if base.trust != nil {
		deps.TLS = base.trust.ServerOptional()
		deps.Admin, deps.Node, deps.Peer = isAdmin, isNode, isServer
	}
	return api.New(config, deps)
}

// isAdmin tells whether a request's certificate, verified by TLS, is an admin's.
func isAdmin(r *http.Request) bool {
	identity, err := peer.PeerIdentity(tlsState(r))
	return err == nil && identity.Role == peer.RoleAdmin
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

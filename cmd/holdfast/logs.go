package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/internal/admin"
	"holdfast/internal/peer"
	"holdfast/internal/run"
	"holdfast/internal/state"
	"holdfast/logrelay"
)

// logService is the log relay and what belongs to it.
type logService struct {
	tasks   []run.Task // none: the node's role does not run it
	handler http.Handler
	setFile func(*cluster.File)
}

// newLogs makes the log relay and its admin socket, if the node's role runs it.
// show adds to what its socket answers; nil adds nothing.
func (c *agentCmd) newLogs(base *foundation, replica *state.Store, groups []uint32, show func(http.Handler) http.Handler) (*logService, error) {
	if !slices.Contains(base.source.Current().Role(base.self.Role).Run, "logs") {
		return &logService{setFile: func(*cluster.File) {}}, nil
	}
	config := logrelay.Config{Node: base.self.Name, DataDir: c.DataDir, Dir: c.LogsDir}
	if len(c.RELPListen) > 0 {
		listen, err := addrPorts(c.RELPListen, 20514)
		if err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf("--relp-listen: %w", err)}
		}
		config.Listen = map[string][]netip.AddrPort{"relp": listen}
	}
	deps := logrelay.Deps{File: base.source.Current(), Log: base.log, Metrics: base.registry, Board: base.board}
	deps.Peers = func() []logrelay.Peer { return logPeers(base.source.Current(), base.trust != nil) }
	if base.trust != nil {
		deps.ServerTLS, deps.ClientTLS = base.trust.Server(peer.RoleServer, peer.RoleAgent), base.trust.Client("")
		deps.ReplicaTLS, deps.PeerTLS = base.trust.Server(peer.RoleServer), base.trust.Client
		deps.Others = func() []logrelay.Other { return logNodes(base.source.Current(), replica.Snapshot(), base.self.Name) }
	}
	relay, err := logrelay.New(config, deps)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	handler := relay.Handler()
	if show != nil {
		handler = show(handler)
	}
	socket, err := admin.New(admin.Config{Unit: "logs", Path: filepath.Join(c.RunDir, "logs.sock"), GIDs: groups},
		admin.Deps{Handler: handler, Log: base.log, Metrics: base.registry})
	if err != nil {
		return nil, err
	}
	return &logService{[]run.Task{relay, socket}, relay.Handler(), relay.SetFile}, nil
}

// logPeers are all nodes that run logs, with where their API answers.
func logPeers(file *cluster.File, secure bool) (list []logrelay.Peer) {
	for _, node := range file.Nodes {
		if !slices.Contains(file.Role(node.Role).Run, "logs") {
			continue
		}
		p := logrelay.Peer{Name: node.Name}
		if config, err := api.ConfigFrom(file, file.Section("api"), node.Name, secure); err == nil && len(config.HTTPS) > 0 {
			p.URL = "https://" + config.HTTPS[0].String()
		}
		list = append(list, p)
	}
	return list
}

// logNodes are the other nodes that run logs and are alive as this node's gossip
// sees it, beginning behind this one: each has another first.
func logNodes(file *cluster.File, snapshot *state.Snapshot, self string) (list []logrelay.Other) {
	at := max(0, slices.IndexFunc(file.Nodes, func(n cluster.Node) bool { return n.Name == self }))
	for _, node := range slices.Concat(file.Nodes[at:], file.Nodes[:at]) {
		if node.Name == self || !slices.Contains(file.Role(node.Role).Run, "logs") {
			continue
		}
		if member, ok := snapshot.Member(node.Name); ok && member.Liveness == state.Alive {
			list = append(list, logrelay.Other{Name: node.Name, Addr: node.Addresses[file.Main().Name]})
		}
	}
	return list
}

package main

import (
	"holdfast/cluster"
	"holdfast/internal/state"
	"holdfast/internal/stream"
	"holdfast/lb"
)

// shared is the cluster's store, as the tasks of the net unit use it.
type shared struct {
	reader   state.Reader
	proposer state.Proposer
	replica  *stream.Replica // of a unit of its own; nil: the store is in this process
}

// newBalancer makes the load balancer of this node; without services in the
// file it does nothing.
func (c *agentCmd) newBalancer(base *foundation, n *network, store shared) (err error) {
	settings, err := balanced(base.source.Current(), base.self.Name)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	n.balancer, err = lb.New(lb.Config{RunDir: c.RunDir, Settings: settings}, lb.Deps{
		Commands: n.commands, Log: base.log, Metrics: base.registry, Board: base.board,
		Suspended: func() bool { return n.routers.Suspended() },
		Store:     store.reader, Proposer: store.proposer,
	})
	return err
}

// balanced is what the file says about this node's virtual services. A node
// that is a cluster of its own has none.
func balanced(file *cluster.File, node string) (lb.Settings, error) {
	if file.Node(node) == nil {
		return lb.Settings{Node: node}, nil
	}
	return lb.SettingsFrom(file, node)
}

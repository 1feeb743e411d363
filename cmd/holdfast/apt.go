package main

import (
	"fmt"
	"path/filepath"

	"holdfast/aptproxy"
	"holdfast/internal/admin"
	"holdfast/internal/state"
	"holdfast/raftstore"
)

// newPackages makes the package proxy.
func (c *agentCmd) newPackages(base *foundation, replica *state.Store, store *raftstore.Store) (*aptproxy.Server, error) {
	listen, err := addrPorts(c.APTListen, 3142)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--apt-listen: %w", err)}
	}
	return aptproxy.New(aptproxy.Config{Node: base.self.Name, Dir: filepath.Join(c.DataDir, "apt"), Listen: listen}, aptproxy.Deps{
		File: base.source.Current(), Log: base.log, Metrics: base.registry, Board: base.board, State: replica, Proposer: store,
	})
}

// newPackagesAdmin answers `holdfast apt`.
func (c *agentCmd) newPackagesAdmin(base *foundation, packages *aptproxy.Server, groups []uint32) (*admin.Server, error) {
	return admin.New(admin.Config{Unit: "apt", Path: filepath.Join(c.RunDir, "apt.sock"), GIDs: groups},
		admin.Deps{Handler: packages.Handler(), Log: base.log, Metrics: base.registry})
}

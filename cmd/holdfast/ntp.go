package main

import (
	"fmt"
	"path/filepath"

	"holdfast/internal/admin"
	"holdfast/internal/state"
	"holdfast/ntpproxy"
	"holdfast/raftstore"
)

// newNTP makes the NTP server.
func (c *agentCmd) newNTP(base *foundation, replica *state.Store, store *raftstore.Store) (*ntpproxy.Server, error) {
	listen, err := addrPorts(c.NTPListen, 123)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--ntp-listen: %w", err)}
	}
	return ntpproxy.New(ntpproxy.Config{Node: base.self.Name, Listen: listen, StateDir: c.DataDir, RunDir: c.RunDir}, ntpproxy.Deps{
		File: base.source.Current(), Log: base.log, Metrics: base.registry, Board: base.board,
		State: replica, Leader: func() string { leader, _, _ := store.Leader(); return leader },
	})
}

// newNTPAdmin answers `holdfast ntp`.
func (c *agentCmd) newNTPAdmin(base *foundation, clock *ntpproxy.Server, groups []uint32) (*admin.Server, error) {
	return admin.New(admin.Config{Unit: "ntp", Path: filepath.Join(c.RunDir, "ntp.sock"), GIDs: groups},
		admin.Deps{Handler: clock.Handler(), Log: base.log, Metrics: base.registry})
}

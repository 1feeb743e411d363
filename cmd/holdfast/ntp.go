package main

import (
	"fmt"

	"holdfast/ntpproxy"
)

// newNTP makes the NTP server.
func (c *agentCmd) newNTP(base *foundation) (*ntpproxy.Server, error) {
	listen, err := addrPorts(c.NTPListen)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--ntp-listen: %w", err)}
	}
	return ntpproxy.New(ntpproxy.Config{Node: base.self.Name, Listen: listen}, ntpproxy.Deps{
		File: base.source.Current(), Log: base.log, Metrics: base.registry, Board: base.board,
	})
}

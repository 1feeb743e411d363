package main

import (
	"errors"
	"time"

	"holdfast/discovery"
	"holdfast/raftstore"
	"holdfast/vrrp"
)

// anewGrace is how long virtual addresses wait for the successor of an agent
// that ends to begin anew.
const anewGrace = 10 * time.Second

// beginAnew sets the damaged store of this node aside, its ID with it, and ends
// the agent for a restart: the next has a new ID and takes its data from the
// others. Virtual addresses stay where they are.
func (c *agentCmd) beginAnew(base *foundation) error {
	if err := raftstore.SetAside(c.DataDir, discovery.NodeIDFile); err != nil {
		return err
	}
	if pid, err := vrrp.Running(c.RunDir); err == nil && pid != 0 {
		if err := vrrp.MarkRestart(c.RunDir, anewGrace); err != nil {
			base.log.Warn("the virtual addresses move while the agent begins anew", "error", err)
		}
	}
	base.anew.Store(true)
	base.end()
	return nil
}

// endedAnew is how an agent ends that is to begin anew: its supervisor starts
// it again.
func (b *foundation) endedAnew() error {
	if !b.anew.Load() {
		return nil
	}
	return &exitError{exitRestart, errors.New("ended to begin anew: the store was damaged, and the others have everything")}
}

package main

import (
	"holdfast/internal/telemetry"
	"holdfast/lb"
	"holdfast/vrrp"
)

// vipGuardCmd is the second process that the agent starts beside itself. It
// reads from standard input what the agent holds.
type vipGuardCmd struct {
	RunDir    string `type:"path" required:"" help:"The agent's --run-dir."`
	LogFormat string `default:"text" enum:"text,json" help:"text or json."`
}

func (c *vipGuardCmd) Run(con *console) error {
	log, _, err := telemetry.NewLogger(con.err, c.LogFormat, "info")
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if err := vrrp.Guard(con.ctx, con.in, c.RunDir, log); err != nil {
		return err
	}
	return lb.Abandon(con.ctx, c.RunDir, log)
}

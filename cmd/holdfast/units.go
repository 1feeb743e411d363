package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/stream"
)

// unitsCmd tells of every process of this node that is no whole agent with a
// store.
type unitsCmd struct {
	RunDir        string `type:"path" default:"/run/holdfast" env:"HOLDFAST_RUN_DIR" help:"Where the units' sockets are; the node's file (/etc/holdfast/node.yaml) counts here, too."`
	ScriptsSocket string `name:"scripts-socket" type:"path" env:"HOLDFAST_SCRIPTS_SOCKET" help:"Where the unit scripts answers; as the node's file says, or scripts.sock in the run directory." placeholder:"PATH"`
	JSON          bool   `name:"json" help:"Print JSON."`
}

// unitReport is what a process tells of itself.
type unitReport struct {
	Unit           string             `json:"unit"`
	*stream.Status                    // nil: it has no state of the cluster, and follows nobody
	Conditions     []health.Condition `json:"conditions,omitempty"`
}

func (*unitsCmd) Help() string {
	return "The units of their own follow core, and the agent of a node that is no server follows a server. Exit status 6 when one does not answer,\n" +
		"or while no leader has confirmed its state for ten seconds; 4 when nothing here follows. The unit scripts has no state: it answers, or does not.\n\nExample: holdfast units"
}

// socketsOfUnits are where who is no agent with a store answers; state is of the
// agent that follows a server.
func socketsOfUnits() []string {
	return []string{"state", onlyNet, onlyDNS, onlyNTP, onlyAPT, onlyLogs, onlyScripts}
}

func (c *unitsCmd) Run(con *console) error {
	all, silent := c.ask(con.ctx)
	if c.JSON {
		if err := con.json(all); err != nil {
			return err
		}
	}
	stale := 0
	for i := range all {
		if !c.JSON {
			if _, err := fmt.Fprintln(con.out, all[i].text()); err != nil {
				return err
			}
		}
		if s := all[i].Status; s != nil && (!s.Confirmed || s.Age > 10*time.Second) {
			stale++
		}
	}
	switch {
	case len(silent) > 0:
		return &exitError{exitDegraded, errors.Join(silent...)}
	case stale > 0:
		return &exitError{exitDegraded, fmt.Errorf("the state of %d is not fresh", stale)}
	case len(all) == 0:
		return &exitError{exitNotFound, errors.New("nothing on this node follows another's state: holdfast status tells about the agent")}
	}
	return nil
}

// ask asks whoever has a socket. A unit that is part of the agent follows nobody.
func (c *unitsCmd) ask(ctx context.Context) (all []unitReport, silent []error) {
	all = []unitReport{} // a list, also in JSON
	for _, unit := range socketsOfUnits() {
		path := filepath.Join(c.RunDir, unit+".sock")
		if unit == onlyScripts && c.ScriptsSocket != "" {
			path = c.ScriptsSocket
		}
		if _, err := os.Lstat(path); err != nil {
			continue // it does not run here
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		var s unitReport
		err := (&dnsSocket{Socket: path}).ask(ctx, "GET", "/v1/unit", nil, &s)
		cancel()
		e, ok := errors.AsType[*exitError](err)
		switch {
		case err == nil:
			all = append(all, s)
		case ok && e.status == exitNotFound:
		default:
			silent = append(silent, fmt.Errorf("%s: %w", unit, err))
		}
	}
	return all, silent
}

// text is a line about a process; of one without state, its conditions, too:
// nobody else shows them.
func (r *unitReport) text() string {
	if r.Status != nil {
		s := *r.Status
		s.Unit = r.Unit
		return unitText(s)
	}
	line := r.Unit + ": runs what core asks for"
	for _, condition := range r.Conditions {
		line += fmt.Sprintf("\n  %s: %s", condition.Name, printable(condition.Message))
	}
	return line
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/stream"
)

// unitsCmd tells of every process of this node that follows another's state.
type unitsCmd struct {
	RunDir string `type:"path" default:"/run/holdfast" env:"HOLDFAST_RUN_DIR" help:"Where the units' sockets are."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (*unitsCmd) Help() string {
	return "The units of their own follow core, and the agent of a node that is no server follows a server. Exit status 6 when one does not answer,\n" +
		"or while no leader has confirmed its state for ten seconds; 4 when nothing here follows.\n\nExample: holdfast units"
}

// followingSockets are where who follows answers; state is the agent's own.
func followingSockets() []string {
	return []string{"state", onlyNet, onlyDNS, onlyNTP, onlyAPT, onlyLogs}
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
			if _, err := fmt.Fprintln(con.out, unitText(all[i])); err != nil {
				return err
			}
		}
		if !all[i].Confirmed || all[i].Age > 10*time.Second {
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
func (c *unitsCmd) ask(ctx context.Context) (all []stream.Status, silent []error) {
	all = []stream.Status{} // a list, also in JSON
	for _, unit := range followingSockets() {
		path := filepath.Join(c.RunDir, unit+".sock")
		if _, err := os.Lstat(path); err != nil {
			continue // it does not run here
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		var s stream.Status
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

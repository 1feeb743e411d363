package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/cluster"
)

type configCmd struct {
	Check  configCheckCmd  `cmd:"" help:"Check a cluster file: all mistakes at once, with file, line and column."`
	Show   configShowCmd   `cmd:"" help:"Print a cluster file with every node set expanded and every default written out."`
	Status configStatusCmd `cmd:"" help:"Tell which cluster file each node runs."`
	Reload configReloadCmd `cmd:"" help:"Make the agent read its cluster file again."`
}

type configCheckCmd struct {
	JSON bool   `name:"json" help:"Print JSON."`
	File string `arg:"" optional:"" default:"/etc/holdfast/cluster.yaml" help:"The cluster file; /etc/holdfast/cluster.yaml unless said."`
}

func (*configCheckCmd) Help() string { return "Example: holdfast config check examples/scibian.yaml" }

func (c *configCheckCmd) Run(con *console) error {
	file, err := cluster.Load(c.File, sections())
	if mistakes, ok := errors.AsType[cluster.Errors](err); ok {
		return c.mistakes(con, mistakes)
	}
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if c.JSON {
		return con.json(map[string]any{"ok": true, "cluster": file.Name, "sum": file.Sum, "nodes": len(file.Nodes), "services": len(file.Services), "vips": len(file.VIPs)})
	}
	_, err = fmt.Fprintf(con.out, "%s is in order: cluster %s, %d nodes, %d servers of which %d vote, %d services, %d VIPs\n",
		c.File, file.Name, len(file.Nodes), len(file.Servers()), file.Voters(), len(file.Services), len(file.VIPs))
	return err
}

// mistakes lists them, a line each that editors can follow.
func (c *configCheckCmd) mistakes(con *console, list cluster.Errors) error {
	if c.JSON {
		rows := make([]map[string]any, len(list))
		for i, m := range list {
			rows[i] = map[string]any{"file": m.File, "line": m.Line, "column": m.Column, "message": m.Message}
		}
		if err := con.json(map[string]any{"ok": false, "mistakes": rows}); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(con.err, list)
	}
	return &exitError{exitUsage, fmt.Errorf("%s is not in order; mistakes: %d", c.File, len(list))}
}

type configShowCmd struct {
	JSON bool   `name:"json" help:"Print JSON."`
	File string `arg:"" optional:"" default:"/etc/holdfast/cluster.yaml" help:"The cluster file; /etc/holdfast/cluster.yaml unless said."`
}

func (*configShowCmd) Help() string { return "Example: holdfast config show --json | jq .nodes" }

func (c *configShowCmd) Run(con *console) error {
	file, err := cluster.Load(c.File, sections())
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if c.JSON {
		return file.WriteJSON(con.out)
	}
	return file.WriteYAML(con.out)
}

type configStatusCmd struct{ connection }

func (*configStatusCmd) Help() string { return "Example: holdfast config status" }

func (c *configStatusCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		report, err := client.ConfigStatus(con.ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(report)
		}
		if report.Config.Path == "" {
			_, err = fmt.Fprintf(con.out, "%s runs without a cluster file: it is a cluster of its own\n", report.Node)
			return err
		}
		fmt.Fprintf(con.out, "%s runs %s, sum %s, read at %s\n", report.Node, report.Config.Path, shortSum(report.Config.Sum),
			report.Config.Loaded.Local().Format(time.DateTime))
		if report.Config.LastGood {
			fmt.Fprintf(con.out, "%s\n  %s\n", con.paint(red, "that file has mistakes; the last good copy is in use:"), strings.Join(report.Config.Problems, "\n  "))
		}
		return con.sums(report)
	})
}

// sums lists the nodes by the file they run.
func (c *console) sums(report api.ConfigReport) error {
	bySum := map[string][]string{}
	for node, sum := range report.Sums {
		bySum[sum] = append(bySum[sum], node)
	}
	var rows [][]string
	for sum, nodes := range bySum {
		rows = append(rows, []string{shortSum(sum), cluster.Fold(nodes)})
	}
	slices.SortFunc(rows, func(a, b []string) int { return strings.Compare(a[1], b[1]) })
	if err := c.table([]string{"SUM", "NODES"}, rows); err != nil {
		return err
	}
	if report.Skew {
		_, err := fmt.Fprintln(c.out, c.paint(yellow, "the living nodes run different files: copy the right one to all and run holdfast config reload on each"))
		return err
	}
	return nil
}

type configReloadCmd struct{ connection }

func (*configReloadCmd) Help() string {
	return "Example: holdfast config check && holdfast config reload\n\nA file with mistakes changes nothing."
}

func (c *configReloadCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		report, err := client.ConfigReload(con.ctx)
		switch {
		case err != nil:
			return err
		case c.JSON:
			return con.json(report)
		case !report.Changed && len(report.Restart) == 0:
			return con.done(false, "nothing changed")
		}
		for _, line := range report.Details {
			fmt.Fprintln(con.out, " ", line)
		}
		if len(report.Applied) > 0 {
			fmt.Fprintln(con.out, "applied:", strings.Join(report.Applied, ", "))
		}
		if len(report.Restart) > 0 {
			fmt.Fprintln(con.out, "takes effect when the agent is restarted (one node at a time):", strings.Join(report.Restart, ", "))
		}
		return nil
	})
}

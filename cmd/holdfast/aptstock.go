package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/aptproxy"
)

type aptOriginsCmd struct{ aptSocket }

func (*aptOriginsCmd) Help() string { return "Example: holdfast apt origins" }

func (c *aptOriginsCmd) Run(con *console) error {
	var list []aptproxy.Origin
	if err := c.ask(con.ctx, "GET", "/v1/apt/origins", nil, &list); err != nil {
		return err
	}
	if c.JSON {
		return con.json(list)
	}
	var rows [][]string
	for _, o := range list {
		quota := "-"
		if o.Max > 0 {
			quota = bytesText(o.Max)
		}
		for _, m := range o.Mirrors {
			state := "works"
			if m.Failures > 0 {
				state = oneLine(m.Error, 50)
			}
			rows = append(rows, []string{o.Repository, bytesText(o.Bytes), quota, m.URL, m.Latency.Round(100 * time.Microsecond).String(),
				strconv.FormatInt(m.Requests, 10), bytesText(m.Bytes), state})
		}
	}
	return con.table([]string{"REPOSITORY", "STORED", "QUOTA", "MIRROR", "LATENCY", "ANSWERS", "FETCHED", "STATE"}, rows)
}

type aptTopCmd struct {
	aptSocket
	By    string `default:"package" enum:"node,package,repository" help:"What is counted: node, package or repository."`
	Lines int    `default:"20" short:"n" help:"How many lines are printed; 0 for all."`
}

func (*aptTopCmd) Help() string {
	return "Example: holdfast apt top --by node\n\nIt counts the last 100,000 requests that this node answered since its start."
}

func (c *aptTopCmd) Run(con *console) error {
	var list []aptproxy.Top
	if err := c.ask(con.ctx, "POST", "/v1/apt/top", aptproxy.TopRequest{By: c.By}, &list); err != nil {
		return err
	}
	if c.Lines > 0 && len(list) > c.Lines {
		list = list[:c.Lines]
	}
	if c.JSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, t := range list {
		rows = append(rows, []string{t.Name, strconv.Itoa(t.Requests), bytesText(t.Bytes)})
	}
	return con.table([]string{strings.ToUpper(c.By), "REQUESTS", "BYTES"}, rows)
}

type aptWarmCmd struct {
	aptSocket
	Repository string   `help:"Only of this repository." placeholder:"NAME"`
	Suite      string   `help:"Only of this suite." placeholder:"SUITE"`
	Packages   []string `arg:"" optional:"" name:"package" help:"Names of packages; those that nodes fetched lately unless said."`
}

func (*aptWarmCmd) Help() string {
	return "Examples:\n" +
		"  holdfast apt warm                          # newer versions of what nodes use, before the night of upgrades\n" +
		"  holdfast apt warm --suite bookworm openmpi-bin slurmd"
}

func (c *aptWarmCmd) Run(con *console) error {
	var report aptproxy.WarmReport
	q := aptproxy.WarmRequest{Repository: c.Repository, Suite: c.Suite, Packages: c.Packages}
	if err := c.ask(con.ctx, "POST", "/v1/apt/warm", q, &report); err != nil {
		return err
	}
	if c.JSON {
		if err := con.json(report); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(con.out, "%d files fetched, %s; %d were here\n", report.Fetched, bytesText(report.Bytes), report.Here)
	}
	var failed []error
	if len(report.Unknown) > 0 {
		failed = append(failed, fmt.Errorf("no suite that clients use has %s", strings.Join(report.Unknown, ", ")))
	}
	for _, text := range report.Failed {
		failed = append(failed, errors.New(text))
	}
	if len(failed) > 0 {
		return &exitError{exitDegraded, errors.Join(failed...)}
	}
	return nil
}

type aptImportCmd struct {
	aptSocket
	Dir string `arg:"" type:"existingdir" help:"A directory of this machine that the agent can read."`
}

func (*aptImportCmd) Help() string {
	return "Example: holdfast apt import /var/cache/apt-cacher-ng\n\n" +
		"Files count by their content, not by their names. What no repository's signature vouches for is left out;\n" +
		"the suites must be known, so run apt-get update through this proxy first."
}

func (c *aptImportCmd) Run(con *console) error {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	var report aptproxy.ImportReport
	if err := c.ask(con.ctx, "POST", "/v1/apt/import", aptproxy.ImportRequest{Dir: dir}, &report); err != nil {
		return err
	}
	if c.JSON {
		return con.json(report)
	}
	_, err = fmt.Fprintf(con.out, "%d files imported, %s; %d were here; %d that nothing vouches for; %d could not be read\n",
		report.Imported, bytesText(report.Bytes), report.Here, report.Unknown, report.Failed)
	return err
}

type aptPurgeCmd struct {
	aptSocket
	Unreferenced bool     `help:"Everything that no kept generation vouches for."`
	Files        []string `arg:"" optional:"" name:"file" help:"REPOSITORY/PATH."`
}

func (*aptPurgeCmd) Help() string {
	return "Examples:\n" +
		"  holdfast apt purge debian/pool/main/b/bash/bash_5.2.15-2_amd64.deb\n" +
		"  holdfast apt purge --unreferenced"
}

func (c *aptPurgeCmd) Run(con *console) error {
	if len(c.Files) == 0 && !c.Unreferenced {
		return &exitError{exitUsage, errors.New("purge what? Name files as REPOSITORY/PATH, or say --unreferenced")}
	}
	var report aptproxy.PurgeReport
	if err := c.ask(con.ctx, "POST", "/v1/apt/purge", aptproxy.PurgeRequest{Files: c.Files, Unreferenced: c.Unreferenced}, &report); err != nil {
		return err
	}
	if c.JSON {
		return con.json(report)
	}
	_, err := fmt.Fprintf(con.out, "%d files removed, %s\n", report.Removed, bytesText(report.Bytes))
	return err
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"holdfast/aptproxy"
	"holdfast/aptproxy/deb"
)

type aptFreezeCmd struct {
	aptSocket
	View   string `default:"all" help:"Name of the view, for thaw and promote." placeholder:"NAME"`
	Nodes  string `help:"Nodes that are held; every client unless said." placeholder:"NODESET"`
	Resign bool   `help:"Sign the Releases by the cluster's own key, without Valid-Until: clients want its keyring, and no [check-valid-until=no]."`
	At     string `help:"Freeze what this node served then (2026-11-01 or 2026-11-01T12:00:00Z); now unless said." placeholder:"TIME"`
}

func (*aptFreezeCmd) Help() string {
	return "Examples:\n" +
		"  holdfast apt freeze                                # every client, as of now\n" +
		"  holdfast apt freeze --view test --nodes 'fbcn[01-04]' --at 2026-11-01\n\n" +
		"A frozen Release may run past its Valid-Until: clients then want [check-valid-until=no] in sources.list,\n" +
		"or the cluster's signature: --resign, and signed-by what http://apt.service.virtual:3142/holdfast-apt.asc gives."
}

func (c *aptFreezeCmd) Run(con *console) error {
	request := aptproxy.FreezeRequest{View: c.View, Nodes: c.Nodes, Resign: c.Resign}
	if c.At != "" {
		at, err := time.Parse(time.RFC3339, c.At)
		if err != nil {
			if at, err = time.ParseInLocation(time.DateOnly, c.At, time.Local); err != nil {
				return &exitError{exitUsage, fmt.Errorf("--at %q is no time such as 2026-11-01 or 2026-11-01T12:00:00Z", c.At)}
			}
		}
		request.At = at
	}
	var list []aptproxy.FrozenReport
	if err := c.ask(con.ctx, "POST", "/v1/apt/freeze", request, &list); err != nil {
		return err
	}
	return printViews(con, list, c.JSON)
}

func printViews(con *console, list []aptproxy.FrozenReport, asJSON bool) error {
	if asJSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, v := range list {
		nodes := v.Nodes
		if nodes == "" {
			nodes = "every client"
		}
		note := v.Trouble
		if v.Resigned && note == "" {
			note = "signed by the cluster"
		}
		rows = append(rows, []string{v.View, nodes, v.Repository, v.Suite, short(v.Generation), date(v.Released), date(v.Frozen), oneLine(note, 70)})
	}
	return con.table([]string{"VIEW", "NODES", "REPOSITORY", "SUITE", "GENERATION", "RELEASED", "FROZEN", ""}, rows)
}

type aptViewsCmd struct{ aptSocket }

func (*aptViewsCmd) Help() string { return "Example: holdfast apt views" }

func (c *aptViewsCmd) Run(con *console) error {
	var list []aptproxy.FrozenReport
	if err := c.ask(con.ctx, "GET", "/v1/apt/views", nil, &list); err != nil {
		return err
	}
	return printViews(con, list, c.JSON)
}

type aptThawCmd struct {
	aptSocket
	View string `arg:"" optional:"" default:"all" help:"Name of the view."`
}

func (*aptThawCmd) Help() string { return "Example: holdfast apt thaw test" }

func (c *aptThawCmd) Run(con *console) error {
	var answer map[string]string
	if err := c.ask(con.ctx, "POST", "/v1/apt/thaw", aptproxy.FreezeRequest{View: c.View}, &answer); err != nil {
		return err
	}
	return con.done(c.JSON, "thawed "+c.View)
}

type aptPromoteCmd struct {
	aptSocket
	Nodes string `help:"Nodes of the second view; those that it has unless said." placeholder:"NODESET"`
	From  string `arg:"" help:"A view."`
	To    string `arg:"" help:"The view that is to hold the same."`
}

func (*aptPromoteCmd) Help() string { return "Example: holdfast apt promote test prod" }

func (c *aptPromoteCmd) Run(con *console) error {
	var answer map[string]string
	request := aptproxy.PromoteRequest{From: c.From, To: c.To, Nodes: c.Nodes}
	if err := c.ask(con.ctx, "POST", "/v1/apt/promote", request, &answer); err != nil {
		return err
	}
	return con.done(c.JSON, c.To+" holds what "+c.From+" holds")
}

type aptRollbackCmd struct {
	aptSocket
	View string `arg:"" optional:"" default:"all" help:"Name of the view."`
}

func (*aptRollbackCmd) Help() string {
	return "Example: holdfast apt rollback prod\n\nOne step is kept: a second rollback undoes the first. A thaw is undone, too."
}

func (c *aptRollbackCmd) Run(con *console) error {
	var list []aptproxy.FrozenReport
	if err := c.ask(con.ctx, "POST", "/v1/apt/rollback", aptproxy.FreezeRequest{View: c.View}, &list); err != nil {
		return err
	}
	return printViews(con, list, c.JSON)
}

type aptSigningKeyCmd struct {
	Name string `default:"Holdfast package proxy" help:"What people see of the key." placeholder:"TEXT"`
	File string `arg:"" help:"Where the key goes; it must not exist."`
}

func (*aptSigningKeyCmd) Help() string {
	return "Example: holdfast apt signing-key /etc/holdfast/secrets/apt-sign.asc\n\n" +
		"Then, in the cluster file: apt: {sign_key: {file: /etc/holdfast/secrets/apt-sign.asc}}\n" +
		"Only nodes on which suites are frozen need the file. Clients get the public half from\n" +
		"http://apt.service.virtual:3142/holdfast-apt.asc, once, by a way that you trust."
}

func (c *aptSigningKeyCmd) Run(con *console) error {
	signer, err := deb.NewSigner(c.Name, time.Now())
	if err != nil {
		return err
	}
	key, err := signer.Private()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &exitError{exitUsage, fmt.Errorf("%s exists: what it signed would lose its key", c.File)}
	}
	if err != nil {
		return err
	}
	_, err = file.Write(key)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return con.done(false, "the key is in "+c.File+"; keep a copy where only you can read it")
}

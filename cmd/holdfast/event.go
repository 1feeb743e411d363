package main

import (
	"fmt"
	"io"
	"strconv"

	"holdfast/api"
)

type eventCmd struct {
	Fire eventFireCmd `cmd:"" help:"Tell the members of something."`
	List eventListCmd `cmd:"" help:"What this node heard of late."`
}

type eventFireCmd struct {
	connection
	Node    string `help:"Only nodes whose names match." placeholder:"REGEXP"`
	Service string `help:"Only nodes with a service whose name matches." placeholder:"REGEXP"`
	Tag     string `help:"With --service: and that has a tag that matches." placeholder:"REGEXP"`
	Name    string `arg:"" help:"What has happened, such as deploy."`
	Payload string `arg:"" optional:"" help:"About 700 bytes at most; - reads them from standard input."`
}

func (*eventFireCmd) Help() string {
	return "Who is away for more than 5 minutes does not hear of it.\n\nExample: holdfast event fire --service web deploy 1.2.3"
}

func (c *eventFireCmd) Run(con *console) error {
	payload := []byte(c.Payload)
	if c.Payload == "-" {
		var err error
		if payload, err = io.ReadAll(io.LimitReader(con.in, 64<<10)); err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
	}
	return c.ask(func(client *api.Client) error {
		fired, err := client.FireEvent(con.ctx, api.Event{
			Name: c.Name, Payload: payload, NodeFilter: c.Node, ServiceFilter: c.Service, TagFilter: c.Tag,
		})
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(fired)
		}
		_, err = fmt.Fprintln(con.out, fired.ID)
		return err
	})
}

type eventListCmd struct {
	connection
	Name string `arg:"" optional:"" help:"Only events of this name."`
}

func (*eventListCmd) Help() string {
	return "The latest 256 that were for this node, the oldest first.\n\nExample: holdfast event list deploy"
}

func (c *eventListCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		events, err := client.Events(con.ctx, c.Name)
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(events)
		}
		var rows [][]string
		for _, e := range events {
			rows = append(rows, []string{e.Name, strconv.FormatUint(e.LTime, 10), e.ID, oneLine(string(e.Payload), 80)})
		}
		return con.table([]string{"EVENT", "ORDER", "ID", "PAYLOAD"}, rows)
	})
}

type monitorCmd struct {
	connection
	Level string `default:"info" enum:"debug,info,warn,error" help:"Of at least this level, whatever the agent itself writes: debug, info, warn or error."`
}

func (*monitorCmd) Help() string {
	return "Ends with Ctrl-C, or with the agent. With --json each line is JSON.\n\nExample: holdfast monitor --level debug"
}

func (c *monitorCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		out := con.out
		if con.isTerm {
			out = &printing{con.out}
		}
		err := client.Monitor(con.ctx, c.Level, c.JSON, out)
		if con.ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// printing takes out what would steer a terminal.
type printing struct{ w io.Writer }

func (p *printing) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.w, visible(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

package main

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"holdfast/api"
	"holdfast/raftstore"
)

// raftServerCmd is a command about one server, which the leader carries out.
type raftServerCmd struct {
	connection
	Server string `arg:"" help:"Name or ID of the server."`
}

func (c *raftServerCmd) carryOut(con *console, operation string) error {
	return c.ask(func(client *api.Client) error {
		var said string
		if err := client.StoreOperation(con.ctx, operation, url.Values{"server": {c.Server}}, true, &said); err != nil {
			return err
		}
		return con.done(c.JSON, said)
	})
}

type raftAddCmd struct{ raftServerCmd }

func (*raftAddCmd) Help() string {
	return "Example: holdfast raft add-peer fbservice4\n\n" +
		"The leader takes in by itself what the gossip shows and the cluster file lists; this does it at once, or says why not.\n" +
		"Refused: a server that is down, that the file does not list, or that has the data of another store."
}

func (c *raftAddCmd) Run(con *console) error { return c.carryOut(con, "add-peer") }

type raftDemoteCmd struct{ raftServerCmd }

func (*raftDemoteCmd) Help() string {
	return "Example: holdfast raft demote fbservice3\n\n" +
		"The server keeps all data and gets no vote until it is promoted; a warm server takes the vote.\n" +
		"Refused: the leader (transfer the leadership first), and when the voters that are up would be no majority."
}

func (c *raftDemoteCmd) Run(con *console) error { return c.carryOut(con, "demote") }

type raftPromoteCmd struct{ raftServerCmd }

func (*raftPromoteCmd) Help() string {
	return "Example: holdfast raft promote fbservice3\n\n" +
		"Ends a demotion. Refused: a server that does not answer or has not caught up, and when there are as many voters\n" +
		"as the cluster file asks for."
}

func (c *raftPromoteCmd) Run(con *console) error { return c.carryOut(con, "promote") }

type raftVerifyCmd struct{ connection }

func (*raftVerifyCmd) Help() string {
	return "Example: holdfast raft verify\n\n" +
		"Every server takes the SHA-256 of its state after the same entry of the log. The leader does this every 20 s by itself.\n" +
		"A state that differs from the majority's is replaced by the majority's; a leader's after it has stepped down. Without a\n" +
		"majority nothing is touched. Exit status 6 when a state differs."
}

func (c *raftVerifyCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		var v raftstore.Verdict
		if err := client.StoreOperation(con.ctx, "verify", nil, true, &v); err != nil {
			return err
		}
		if err := c.print(con, v); err != nil {
			return err
		}
		if problem := v.Problem(); problem != "" {
			return &exitError{exitDegraded, errors.New(problem)}
		}
		return nil
	})
}

func (c *raftVerifyCmd) print(con *console, v raftstore.Verdict) error {
	if c.JSON {
		return con.json(v)
	}
	rows := make([][]string, 0, len(v.Servers))
	for _, s := range v.Servers {
		sum := s.Sum
		if sum == "" {
			sum = "-"
		}
		rows = append(rows, []string{s.Name, s.Verdict, sum})
	}
	fmt.Fprintf(con.out, "after entry %d of the log:\n", v.Index)
	return con.table([]string{"NODE", "STATE", "SHA-256"}, rows)
}

type pilotCmd struct {
	Get   pilotGetCmd   `cmd:"" help:"Print the settings."`
	Set   pilotSetCmd   `cmd:"" help:"Change settings, for all leaders to come."`
	State pilotStateCmd `cmd:"" help:"The health of the servers as the leader sees it; exit status 6 when one is ill."`
}

type pilotGetCmd struct{ connection }

func (*pilotGetCmd) Help() string { return "Example: holdfast raft autopilot get" }

func (c *pilotGetCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		var st raftstore.PilotState
		if err := client.StoreOperation(con.ctx, "autopilot", nil, false, &st); err != nil {
			return err
		}
		return printPilot(con, c.JSON, st.Settings)
	})
}

func printPilot(con *console, asJSON bool, a raftstore.Autopilot) error {
	if asJSON {
		return con.json(a)
	}
	return con.table([]string{"SETTING", "VALUE", "MEANING"}, [][]string{
		{"clean-up", strconv.FormatBool(a.CleanUp), "a lost server's vote is taken, and it is forgotten at last"},
		{"dead-after", a.DeadAfter.String(), "a voter gone so long counts as lost: a warm server takes its vote"},
		{"forget-after", a.ForgetAfter.String(), "a server without a vote gone so long is taken out"},
		{"min-quorum", strconv.Itoa(a.MinQuorum), "voters that must stay when no warm server takes the vote"},
		{"stabilization", a.Stabilization.String(), "a server must answer so long without a break before it gets a vote"},
	})
}

type pilotSetCmd struct {
	connection
	CleanUp       *bool          `help:"Take the votes of lost servers, and forget them at last." negatable:""`
	DeadAfter     *time.Duration `help:"10s to 720h." placeholder:"DURATION"`
	ForgetAfter   *time.Duration `help:"--dead-after to 8760h." placeholder:"DURATION"`
	MinQuorum     *int           `help:"1 to 99." placeholder:"N"`
	Stabilization *time.Duration `help:"0s to 1h." placeholder:"DURATION"`
}

func (*pilotSetCmd) Help() string {
	return "Example: holdfast raft autopilot set --dead-after 30m --no-clean-up\n\nWhat is not named stays as it is."
}

func (c *pilotSetCmd) Run(con *console) error {
	args := url.Values{}
	if c.CleanUp != nil {
		args.Set("clean-up", strconv.FormatBool(*c.CleanUp))
	}
	for key, d := range map[string]*time.Duration{"dead-after": c.DeadAfter, "forget-after": c.ForgetAfter, "stabilization": c.Stabilization} {
		if d != nil {
			args.Set(key, d.String())
		}
	}
	if c.MinQuorum != nil {
		args.Set("min-quorum", strconv.Itoa(*c.MinQuorum))
	}
	if len(args) == 0 {
		return &exitError{exitUsage, errors.New("autopilot set: nothing to set; see --help")}
	}
	return c.ask(func(client *api.Client) error {
		var st raftstore.PilotState
		if err := client.StoreOperation(con.ctx, "autopilot", args, true, &st); err != nil {
			return err
		}
		return printPilot(con, c.JSON, st.Settings)
	})
}

type pilotStateCmd struct{ connection }

func (*pilotStateCmd) Help() string { return "Example: holdfast raft autopilot state" }

func (c *pilotStateCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		var st raftstore.PilotState
		if err := client.StoreOperation(con.ctx, "autopilot", nil, false, &st); err != nil {
			return err
		}
		if err := c.print(con, st); err != nil {
			return err
		}
		if !st.Healthy {
			return &exitError{exitDegraded, fmt.Errorf("not all servers are well; %d more voters may fail before there is no majority", st.Tolerate)}
		}
		return nil
	})
}

func (c *pilotStateCmd) print(con *console, st raftstore.PilotState) error {
	if c.JSON {
		return con.json(st)
	}
	rows := make([][]string, 0, len(st.Servers))
	for _, s := range st.Servers {
		role, health, since := "no vote", "well", "-"
		switch {
		case s.Leader:
			role = "leader"
		case s.Voter:
			role = "voter"
		case s.Demoted:
			role = "no vote (demoted)"
		}
		if !s.Healthy {
			health = "ill"
		} else if !s.Stable {
			health = "well, not stable yet"
		}
		if s.Gone > 0 {
			since = ago(s.Gone)
		}
		rows = append(rows, []string{s.Name, role, health, since})
	}
	fmt.Fprintf(con.out, "%d voters of %d wanted; %d may fail; %s\n", st.Voters, st.Wanted, st.Tolerate, levelSentence(st.Level))
	return con.table([]string{"NODE", "ROLE", "HEALTH", "GONE FOR"}, rows)
}

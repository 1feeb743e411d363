package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/cluster"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

type statusCmd struct{ connection }

func (*statusCmd) Help() string {
	return "Exit status 6 when something is failing: a member, a check, the leader, a condition.\n\n" +
		"Examples:\n  holdfast status\n  holdfast status --server https://fbservice1:8501 --json"
}

func (c *statusCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		status, err := client.Status(con.ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			err = con.json(status)
		} else {
			err = con.status(status)
		}
		if err == nil && degraded(status) {
			err = &exitError{exitDegraded, errors.New("something is failing")}
		}
		return err
	})
}

func degraded(s api.Status) bool {
	return s.Leader == nil || len(s.Failing) > 0 || s.ConfigSkew ||
		slices.ContainsFunc(s.Members, func(m api.MemberStatus) bool { return m.Liveness == state.Failed }) ||
		slices.ContainsFunc(s.Conditions, func(c health.Condition) bool { return c.Severity != health.Info })
}

func (c *console) status(s api.Status) error {
	leader := c.paint(red, "none: nothing can be written")
	if s.Leader != nil {
		leader = c.paint(green, s.Leader.Name)
	}
	replica := "never confirmed by a leader since the start"
	if s.Replica.Confirmed {
		replica = fmt.Sprintf("index %d, confirmed %s ago", s.Replica.Index, ago(time.Duration(s.Replica.Age*float64(time.Second))))
	}
	fmt.Fprintf(c.out, "Cluster %s, as %s sees it.  Leader: %s.  Replica: %s.\n\n", c.paint(bold, s.Cluster), s.Node, leader, replica)
	if err := c.members(s.Members, s.Raft, s.Time); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	if err := c.services(s.Services, s.Time); err != nil {
		return err
	}
	if len(s.Failing) > 0 {
		fmt.Fprintf(c.out, "\n%s\n", c.paint(red, "Failing checks"))
		if err := c.failing(s.Failing, s.Time); err != nil {
			return err
		}
	}
	if s.ConfigSkew {
		fmt.Fprintf(c.out, "\n%s\n", c.paint(yellow, "The nodes run different cluster files: holdfast config status"))
	}
	for _, condition := range s.Conditions {
		fmt.Fprintf(c.out, "\n%s for %s: %s\n", c.paint(yellow, condition.Name), ago(s.Time.Sub(condition.Since)), lines(condition.Message))
	}
	return nil
}

func (c *console) members(members []api.MemberStatus, servers []state.RaftServer, now time.Time) error {
	rows := make([][]string, 0, len(members))
	for _, m := range members {
		rows = append(rows, []string{m.Name, m.Address, string(m.Liveness), lasted(m.Since, now), raftRole(m.Name, servers), m.Version, shortSum(m.ConfigSum)})
	}
	return c.table([]string{"NODE", "ADDRESS", "GOSSIP", "SINCE", "RAFT", "VERSION", "CONFIG"}, rows)
}

func raftRole(name string, servers []state.RaftServer) string {
	for _, s := range servers {
		if !strings.EqualFold(s.Name, name) {
			continue
		}
		switch {
		case s.Leader:
			return "leader"
		case s.Voter:
			return "voter"
		}
		return "non-voter"
	}
	return "-"
}

func (c *console) services(services []api.ServiceStatus, now time.Time) error {
	rows := make([][]string, 0, len(services))
	for _, s := range services {
		good, bad := answering(s.Instances, now)
		rows = append(rows, []string{s.Name, fmt.Sprintf("%d/%d", s.Passing, len(s.Instances)), good, bad})
	}
	return c.table([]string{"SERVICE", "PASSING", "ANSWERED BY", "NOT BY"}, rows)
}

// answering folds the nodes of a service: those that pass, and the others by
// what they are and since when.
func answering(instances []api.InstanceStatus, now time.Time) (good, bad string) {
	const passing = ""
	nodes := map[string][]string{}
	for _, i := range instances {
		as := passing
		if i.Status != state.Passing {
			as = fmt.Sprintf(" (%s, %s)", i.Status, lasted(i.Since, now))
		}
		if !slices.Contains(nodes[as], i.Node) { // which may have several instances
			nodes[as] = append(nodes[as], i.Node)
		}
	}
	good = "nobody"
	if len(nodes[passing]) > 0 {
		good = cluster.Fold(nodes[passing])
	}
	delete(nodes, passing)
	var others []string
	for as, names := range nodes {
		others = append(others, cluster.Fold(names)+as)
	}
	slices.Sort(others)
	return good, strings.Join(others, ", ")
}

func (c *console) failing(checks []api.FailingCheck, now time.Time) error {
	rows := make([][]string, 0, len(checks))
	for _, f := range checks {
		rows = append(rows, []string{f.Node, f.ID, string(f.Status), lasted(f.Since, now), oneLine(f.Output, 72)})
	}
	return c.table([]string{"NODE", "CHECK", "STATUS", "SINCE", "OUTPUT"}, rows)
}

// lasted says how long something has been so; with "≥" when it was so already
// when the node began to look.
func lasted(since *api.Since, now time.Time) string {
	switch {
	case since == nil:
		return "-"
	case since.Exact:
		return ago(now.Sub(since.Time))
	}
	return "≥" + ago(now.Sub(since.Time))
}

func shortSum(sum string) string { return sum[:min(8, len(sum))] }

type membersCmd struct{ connection }

func (*membersCmd) Help() string { return "Example: holdfast members --json | jq -r '.[].name'" }

func (c *membersCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		status, err := client.Status(con.ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return con.json(status.Members)
		}
		return con.members(status.Members, status.Raft, status.Time)
	})
}

type servicesCmd struct {
	connection
	Name string `arg:"" optional:"" help:"Only this service, instance by instance."`
}

func (*servicesCmd) Help() string { return "Examples:\n  holdfast services\n  holdfast services apt" }

func (c *servicesCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		status, err := client.Status(con.ctx)
		if err != nil {
			return err
		}
		services := status.Services
		if len(services) == 0 && status.Leader == nil && !status.Replica.Confirmed {
			return &exitError{exitNoLeader, errors.New("no cluster leader: the store is not formed yet, and this node knows of no service")}
		}
		if c.Name != "" {
			services = slices.DeleteFunc(services, func(s api.ServiceStatus) bool { return !strings.EqualFold(s.Name, c.Name) })
			if len(services) == 0 {
				return &exitError{exitNotFound, fmt.Errorf("there is no service %q", c.Name)}
			}
		}
		switch {
		case c.JSON:
			return con.json(services)
		case c.Name != "":
			return con.instances(services[0], status.Time)
		}
		return con.services(services, status.Time)
	})
}

func (c *console) instances(s api.ServiceStatus, now time.Time) error {
	rows := make([][]string, 0, len(s.Instances))
	for _, i := range s.Instances {
		rows = append(rows, []string{i.Node, i.ID, fmt.Sprintf("%s:%d", i.Address, i.Port), string(i.Status), lasted(i.Since, now)})
	}
	return c.table([]string{"NODE", "ID", "ADDRESS", "STATUS", "SINCE"}, rows)
}

type leaveCmd struct{ connection }

func (*leaveCmd) Help() string {
	return "Example: holdfast leave\n\nTo restart a node, just restart its agent: leaving is for a node that goes away."
}

func (c *leaveCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		if err := client.Leave(con.ctx); err != nil {
			return err
		}
		if c.JSON {
			return con.json(map[string]bool{"left": true})
		}
		_, err := fmt.Fprintln(con.out, "left the cluster; the agent ends")
		return err
	})
}

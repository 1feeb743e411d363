package main

import (
	"fmt"
	"strconv"
	"time"

	"holdfast/ntpproxy"
)

type ntpClientsCmd struct {
	ntpSocket
	Over time.Duration `help:"Only those that are further off." placeholder:"DURATION"`
}

func (*ntpClientsCmd) Help() string {
	return "Example: holdfast ntp clients --over 10ms\n\n" +
		"OFFSET is how far a client's clock is ahead of this node's, less the way from it to here. A\n" +
		"client that puts no time of its own into its requests (chronyd, for one) has none."
}

func (c *ntpClientsCmd) Run(con *console) error {
	var all []ntpproxy.Client
	if err := c.ask(con, "GET", "/v1/ntp/clients", &all); err != nil {
		return err
	}
	list := []ntpproxy.Client{}
	for _, one := range all {
		if c.Over == 0 || one.Tells && one.Offset.Abs() > c.Over {
			list = append(list, one)
		}
	}
	if c.JSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, one := range list {
		name, offset := one.Name, "-"
		if name == "" {
			name = one.Address.String()
		}
		if one.Tells {
			offset = micro(one.Offset)
		}
		rows = append(rows, []string{name, offset, one.Age.Round(time.Second).String(), strconv.FormatUint(one.Requests, 10), strconv.Itoa(int(one.Version))})
	}
	return con.table([]string{"CLIENT", "OFFSET", "LAST SEEN", "REQUESTS", "VERSION"}, rows)
}

type ntpPeersCmd struct{ ntpSocket }

func (c *ntpPeersCmd) Run(con *console) error {
	var list []ntpproxy.Peer
	if err := c.ask(con, "GET", "/v1/ntp/peers", &list); err != nil {
		return err
	}
	if c.JSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		rows = append(rows, []string{p.Node, p.Address, p.State, strconv.Itoa(int(p.Stratum)), p.Source, micro(p.Offset), micro(p.Delay)})
	}
	return con.table([]string{"NODE", "ADDRESS", "STATE", "STRATUM", "SOURCE", "OFFSET", "DELAY"}, rows)
}

type ntpOrphanCmd struct{ ntpSocket }

func (c *ntpOrphanCmd) Run(con *console) error {
	var t ntpproxy.Tracking
	if err := c.ask(con, "GET", "/v1/ntp/tracking", &t); err != nil {
		return err
	}
	if !t.Steering {
		return &exitError{exitDegraded, fmt.Errorf("this node does not steer its clock: the daemon that does knows where its time comes from")}
	}
	if c.JSON {
		return con.json(t)
	}
	if t.Leader == "" {
		t.Leader = "unknown"
	}
	return con.table([]string{"CLUSTER'S TIME", ""}, [][]string{
		{"phase", t.Phase}, {"follows", t.Source}, {"stratum", strconv.Itoa(int(t.Stratum))},
		{"root dispersion", micro(t.RootDispersion)}, {"store's leader", t.Leader},
	})
}

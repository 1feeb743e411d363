package main

import (
	"fmt"
	"strconv"
	"strings"

	"holdfast/ntpproxy"
)

// ntpSocket asks the NTP unit on this machine. It is embedded in every command
// that does.
type ntpSocket struct {
	Socket string `default:"/run/holdfast/ntp.sock" env:"HOLDFAST_NTP_SOCKET" help:"Admin socket of the NTP server on this machine."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (n *ntpSocket) ask(con *console, method, path string, v any) error {
	return (&dnsSocket{Socket: n.Socket}).ask(con.ctx, method, path, nil, v)
}

type ntpTrackingCmd struct{ ntpSocket }

func (c *ntpTrackingCmd) Run(con *console) error {
	var t ntpproxy.Tracking
	if err := c.ask(con, "GET", "/v1/ntp/tracking", &t); err != nil {
		return err
	}
	if c.JSON {
		return con.json(t)
	}
	keeper := "another daemon"
	if t.Steering {
		keeper = "this node"
	}
	rows := [][]string{
		{"steered by", keeper}, {"stratum", strconv.Itoa(int(t.Stratum))}, {"reference", t.Reference}, {"leap second", t.Leap},
		{"root delay", micro(t.RootDelay)}, {"root dispersion", micro(t.RootDispersion)},
	}
	if len(t.HeldBy) > 0 {
		rows = append(rows, []string{"no steps beside", strings.Join(t.HeldBy, ", ")})
	}
	if t.Steering {
		rows = append(rows, [][]string{
			{"source", t.Source}, {"offset, yet to be corrected", t.Offset.String()}, {"slewing", fmt.Sprintf("%+.0f ppm", t.Slew)},
			{"frequency", fmt.Sprintf("%+.3f ppm, ±%.3f", t.Frequency, t.Skew)}, {"corrections", strconv.Itoa(t.Updates)},
		}...)
	}
	return con.table([]string{"CLOCK", ""}, rows)
}

type ntpSourcesCmd struct{ ntpSocket }

func (*ntpSourcesCmd) Help() string {
	return "STATE: leading and survivor count; an outlier is right, but not needed; a falseticker is wrong\n" +
		"if the majority is right. OFFSET is how far a source is ahead of this clock, ±ERROR (one standard\n" +
		"error); DISTANCE is the most that it can be wrong if it is honest. REACH: the last eight\n" +
		"requests, the latest at the right; 1 was answered."
}

func (c *ntpSourcesCmd) Run(con *console) error {
	var list []ntpproxy.Source
	if err := c.ask(con, "GET", "/v1/ntp/sources", &list); err != nil {
		return err
	}
	if c.JSON {
		return con.json(list)
	}
	if len(list) == 0 {
		return &exitError{exitDegraded, fmt.Errorf("this node does not steer its clock: it has no sources, or another daemon does")}
	}
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		rows = append(rows, []string{
			s.Name, s.State, strconv.Itoa(int(s.Stratum)), s.Poll.String(), fmt.Sprintf("%08b", s.Reach), strconv.Itoa(s.Samples),
			s.Offset.String(), "±" + s.Error.String(), micro(s.Distance), micro(s.Delay),
		})
	}
	return con.table([]string{"SOURCE", "STATE", "STRATUM", "POLL", "REACH", "SAMPLES", "OFFSET", "ERROR", "DISTANCE", "DELAY"}, rows)
}

type ntpStepCmd struct {
	ntpSocket
	Force bool `help:"Even while services live here that a clock must not jump under."`
}

func (c *ntpStepCmd) Run(con *console) error {
	path := "/v1/ntp/step"
	if c.Force {
		path += "?force"
	}
	if err := c.ask(con, "POST", path, &struct{}{}); err != nil {
		return err
	}
	_, err := fmt.Fprintln(con.out, "the clock is stepped with the next answer of its sources, if it is further off than ntp.step")
	return err
}

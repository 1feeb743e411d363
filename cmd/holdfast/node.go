package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/internal/kernel/command"
	"holdfast/vrrp"
)

type nodeCmd struct {
	Drain   nodeDrainCmd   `cmd:"" help:"Take this node out of all that it does: load balancer, DNS answers, virtual addresses, leadership."`
	Undrain nodeUndrainCmd `cmd:"" help:"Put it back."`
	Status  nodeStatusCmd  `cmd:"" help:"What a node does for the others, of what it is the last, and what is taken from it."`
}

// hookTime is how long one hook may take.
const hookTime = 10 * time.Minute

// nodeUnits are the units of this node that a drain speaks to.
type nodeUnits struct {
	Node  string `arg:"" help:"This node's name: what the command must not be typed on by mistake."`
	Core  string `name:"socket" default:"/run/holdfast/core.sock" env:"HOLDFAST_SOCKET" help:"Admin socket of the agent on this machine."`
	Net   string `name:"net-socket" default:"/run/holdfast/net.sock" env:"HOLDFAST_NET_SOCKET" help:"Admin socket of its net unit."`
	Hooks string `type:"path" default:"/etc/holdfast/drain.d" env:"HOLDFAST_DRAIN_HOOKS" help:"Directory of the site's programs, run in the order of their names with drain or undrain and the node's name."`
	JSON  bool   `name:"json" help:"Print JSON: a list of steps."`
}

// nodeStep is one part of a drain. Done twice it changes nothing the second
// time; its text says what was done, or why nothing had to be.
type nodeStep struct {
	name string
	do   func(context.Context) (text string, err error)
}

// stepReport is what came of a step.
type stepReport struct {
	Step string `json:"step"`
	Done bool   `json:"done"`
	Text string `json:"text"`
}

// carryOut does the steps up to the first that fails.
func (u *nodeUnits) carryOut(con *console, steps []nodeStep) (reports []stepReport, err error) {
	for _, s := range steps {
		text, failure := s.do(con.ctx)
		if failure != nil {
			text = failure.Error()
		}
		reports = append(reports, stepReport{Step: s.name, Done: failure == nil, Text: text})
		if !u.JSON {
			fmt.Fprintf(con.out, "%-10s %s\n", s.name, printable(text))
		}
		if failure != nil {
			failure = fmt.Errorf("%s: %w; what stands above was done: repeat the command when this is repaired, or undo it", s.name, failure)
			return reports, keepStatus(failure)
		}
	}
	return reports, nil
}

// keepStatus lifts the exit status of a cause that has one.
func keepStatus(err error) error {
	if e, ok := errors.AsType[*exitError](err); ok {
		return &exitError{e.status, err}
	}
	return err
}

// core asks the agent.
func (u *nodeUnits) core(f func(*api.Client) error) error {
	return (&connection{Socket: u.Core}).ask(f)
}

func (u *nodeUnits) lb() *lbSocket { return &lbSocket{Socket: u.Net} }

// here refuses a name that is not this node's.
func (u *nodeUnits) here(ctx context.Context) (st api.Status, err error) {
	err = u.core(func(c *api.Client) (err error) {
		st, err = c.Status(ctx)
		return err
	})
	if err == nil && st.Node != u.Node {
		err = &exitError{exitUsage, fmt.Errorf("this is %s: its addresses and its leadership are handed over by itself; type it on %s", st.Node, u.Node)}
	}
	return st, err
}

func (u *nodeUnits) vips(ctx context.Context) (views []vrrp.View, err error) {
	err = (&vipConnection{Socket: u.Net}).ask(&console{ctx: ctx}, "GET", "list", nil, &views)
	return views, err
}

// hooks runs the site's programs: each must end well before the next begins.
func (u *nodeUnits) hooks(ctx context.Context, verb string) (string, error) {
	entries, err := os.ReadDir(u.Hooks) // in the order of names
	if errors.Is(err, os.ErrNotExist) {
		return "none in " + u.Hooks, nil
	}
	if err != nil {
		return "", err
	}
	ran := 0
	for _, e := range entries {
		path := filepath.Join(u.Hooks, e.Name())
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			continue // a README, or one that is switched off
		}
		runner, err := command.New(path)
		if err == nil {
			_, err = runner.Run(ctx, command.Command{Argv: []string{path, verb, u.Node}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Timeout: hookTime})
		}
		if err != nil {
			return "", err
		}
		ran++
	}
	return fmt.Sprintf("%d programs of %s ran", ran, u.Hooks), nil
}

type nodeDrainCmd struct {
	nodeUnits
	Deadline time.Duration `help:"When people are told that it ends, such as 2h. Nobody is thrown out." placeholder:"DURATION"`
	Message  string        `help:"What people are told beside that." placeholder:"TEXT"`
	Accept   []string      `help:"A service that may be left without a healthy instance. May be repeated." placeholder:"SERVICE"`
	Force    bool          `help:"Also when services are left without a healthy instance, or a load-balanced one without its quorum."`
	Wait     bool          `help:"Return when nobody is on it any more."`
}

func (*nodeDrainCmd) Help() string {
	return "Examples:\n" +
		"  holdfast node drain fbfront2 --deadline 2h --message 'new kernel'\n" +
		"  holdfast lock reboot -- holdfast node drain fbfront2 --wait    # one node at a time\n\n" +
		"Type it on the node. In this order, up to the first that fails: of every service that the node has a healthy instance\n" +
		"of there must be one elsewhere; the load balancer sends nobody new; the programs of /etc/holdfast/drain.d run; the\n" +
		"node's services leave DNS answers; its virtual addresses are handed over; the leader hands over. What was done already\n" +
		"is left as it is, so it can be repeated."
}

func (c *nodeDrainCmd) Run(con *console) error {
	st, err := c.here(con.ctx)
	if err != nil {
		return err
	}
	balanced := false
	reports, err := c.carryOut(con, []nodeStep{
		{"instances", func(context.Context) (string, error) { return c.spare(st.Services) }},
		{"lb", func(ctx context.Context) (text string, err error) {
			text, balanced, err = c.leaveLB(con)
			return text, err
		}},
		{"hooks", func(ctx context.Context) (string, error) { return c.hooks(ctx, "drain") }},
		{"dns", func(ctx context.Context) (string, error) {
			return "its services are in no answer", c.core(func(client *api.Client) error {
				return client.Maintenance(ctx, true, "drained: "+fallback(c.Message, "no reason given"))
			})
		}},
		{"vip", c.leaveVIPs},
		{"leader", c.leaveLeadership},
	})
	if err == nil && c.Wait {
		var last stepReport
		last, err = c.wait(con, balanced)
		reports = append(reports, last)
	}
	if c.JSON {
		err = errors.Join(con.json(reports), err)
	}
	return err
}

// spare refuses to take the last healthy instance of a service.
func (c *nodeDrainCmd) spare(services []api.ServiceStatus) (string, error) {
	last := lastOf(services, c.Node, c.Accept)
	switch {
	case len(last) == 0:
		return "all its services go on elsewhere", nil
	case c.Force:
		return "nobody else has a healthy instance of " + strings.Join(last, ", "), nil
	}
	return "", fmt.Errorf("%s has the last healthy instance of %s: bring up another one, or name it with --accept", c.Node, strings.Join(last, ", "))
}

// leaveLB has nobody new sent to the node; balanced: it is a real server.
func (c *nodeDrainCmd) leaveLB(con *console) (text string, balanced bool, err error) {
	drain := lbDrainCmd{lbSocket: *c.lb(), Node: c.Node, Deadline: c.Deadline, Message: c.Message, Force: c.Force}
	err = drain.order(con)
	if e, ok := errors.AsType[*exitError](err); ok && e.status == exitNotFound {
		return "it is no real server", false, nil
	}
	return "nobody new is sent to it", err == nil, err
}

// leaveVIPs hands over what the node holds.
func (c *nodeDrainCmd) leaveVIPs(ctx context.Context) (string, error) {
	views, err := c.vips(ctx)
	if err != nil {
		return "", err
	}
	moved, alone := 0, 0
	for i := range views {
		v := &views[i]
		switch {
		case v.Holder != c.Node:
			continue
		case len(v.Order) < 2:
			alone++ // nobody could take it: it goes with the node
			continue
		}
		var m vrrp.Moved
		err := (&vipConnection{Socket: c.Net}).ask(&console{ctx: ctx}, "POST", "move/"+url.PathEscape(v.Name), nil, &m)
		if err == nil && !m.Done {
			err = errors.New(m.Text)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", v.Name, err)
		}
		moved++
	}
	text := fmt.Sprintf("%d addresses handed over", moved)
	if alone > 0 {
		text += fmt.Sprintf("; %d have no other member and end with the node", alone)
	}
	return text, nil
}

// leaveLeadership hands Raft's leadership over, if it is this node's when its
// turn comes.
func (c *nodeDrainCmd) leaveLeadership(ctx context.Context) (string, error) {
	leads, alone, err := c.leads(ctx)
	switch {
	case err != nil:
		return "", err
	case !leads:
		return "it does not lead", nil
	case alone:
		return "it is the only server", nil
	}
	err = c.core(func(client *api.Client) error { return client.TransferLeader(ctx, "") })
	if err != nil {
		if leads, _, failure := c.leads(ctx); failure == nil && !leads {
			err = nil // it was taken meanwhile
		}
	}
	return "another server leads", err
}

func (c *nodeDrainCmd) leads(ctx context.Context) (leads, alone bool, err error) {
	st, err := c.here(ctx)
	return st.Leader != nil && st.Leader.Name == c.Node, len(st.Raft) < 2, err
}

// wait waits for people to go, where there may be some.
func (c *nodeDrainCmd) wait(con *console, balanced bool) (stepReport, error) {
	report := stepReport{Step: "wait", Text: "empty, safe to reboot"}
	if balanced {
		quiet := *con
		if c.JSON {
			quiet.out = con.err
		}
		if err := (&lbDrainCmd{lbSocket: *c.lb(), Node: c.Node}).wait(&quiet); err != nil {
			report.Text = err.Error()
			return report, err
		}
	} else if !c.JSON {
		fmt.Fprintln(con.out, report.Text)
	}
	report.Done = true
	return report, nil
}

type nodeUndrainCmd struct{ nodeUnits }

func (*nodeUndrainCmd) Help() string {
	return "Example: holdfast node undrain fbfront2\n\n" +
		"Type it on the node. Addresses come back by their priorities; leadership stays where it is."
}

func (c *nodeUndrainCmd) Run(con *console) error {
	if _, err := c.here(con.ctx); err != nil {
		return err
	}
	reports, err := c.carryOut(con, []nodeStep{
		{"dns", func(ctx context.Context) (string, error) {
			return "its services are in answers again", c.core(func(client *api.Client) error { return client.Maintenance(ctx, false, "") })
		}},
		{"vip", func(ctx context.Context) (string, error) {
			views, err := c.vips(ctx)
			for i := range views {
				if err == nil {
					err = (&vipConnection{Socket: c.Net}).ask(con, "POST", "release/"+url.PathEscape(views[i].Name), nil, &vrrp.View{})
				}
			}
			return "priorities decide again", err
		}},
		{"hooks", func(ctx context.Context) (string, error) { return c.hooks(ctx, "undrain") }},
		{"lb", func(context.Context) (string, error) {
			return "it gets new people again", c.lb().ask(con, "POST", "undrain/"+url.PathEscape(c.Node), new(any))
		}},
	})
	if c.JSON {
		err = errors.Join(con.json(reports), err)
	}
	return err
}

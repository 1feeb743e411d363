package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"holdfast/lb"
)

type lbCmd struct {
	Status   lbStatusCmd   `cmd:"" help:"Services, real servers, their weights and loads, and who is drained."`
	Top      lbTopCmd      `cmd:"" help:"New connections and bytes of each real server, again and again."`
	Sessions lbSessionsCmd `cmd:"" help:"List the connections that go through this node, and who is at home where."`
	Explain  lbExplainCmd  `cmd:"" help:"Tell where a client is sent, and why."`
	Drain    lbDrainCmd    `cmd:"" help:"Give a node nobody new, and tell people on it; --wait waits until it is empty."`
	Undrain  lbUndrainCmd  `cmd:"" help:"Give a node new people again."`
	Firewall lbFirewallCmd `cmd:"" help:"Print what this node's firewall must let through."`
}

// lbSocket asks the net unit on this machine. It is embedded in every command
// that does.
type lbSocket struct {
	Socket string `default:"/run/holdfast/net.sock" env:"HOLDFAST_NET_SOCKET" help:"Admin socket of the net unit on this machine."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (c *lbSocket) ask(con *console, method, path string, v any) error {
	return (&dnsSocket{Socket: c.Socket}).ask(con.ctx, method, lb.AdminPath+path, nil, v)
}

func (c *lbSocket) status(con *console) (st lb.Status, err error) {
	err = c.ask(con, "GET", "status", &st)
	return st, err
}

type lbStatusCmd struct{ lbSocket }

func (*lbStatusCmd) Help() string { return "Example: holdfast lb status" }

func (c *lbStatusCmd) Run(con *console) error {
	st, err := c.status(con)
	if err != nil {
		return err
	}
	if c.JSON {
		return con.json(st)
	}
	directs := "stands by"
	if st.Directs {
		directs = "directs"
	}
	fmt.Fprintf(con.out, "%s %s\n", printable(st.Node), directs)
	var rows [][]string
	for _, v := range st.Services {
		for _, r := range v.Servers {
			rows = append(rows, []string{
				v.Name, v.Key, r.Node, r.Addr.String(), serverState(&r), strconv.Itoa(r.Weight),
				fmt.Sprint(r.Active), fmt.Sprint(r.Inactive), fmt.Sprint(r.AtHome), fmt.Sprint(r.Connections),
			})
		}
	}
	if err := con.table([]string{"SERVICE", "ADDRESS", "NODE", "SERVER", "STATE", "WEIGHT", "ACTIVE", "INACTIVE", "AT HOME", "TOTAL"}, rows); err != nil {
		return err
	}
	for _, node := range slices.Sorted(maps.Keys(st.Drains)) {
		printDrain(con, &st, node)
	}
	for _, text := range st.Remarks {
		fmt.Fprintln(con.out, con.paint(yellow, printable(text)))
	}
	return nil
}

func serverState(r *lb.ServerStatus) string {
	switch {
	case r.Drained:
		return "drained"
	case !r.Up:
		return "fails"
	}
	return "up"
}

// printDrain tells how far a drain is: who is left, how long they have typed
// nothing, and an estimate.
func printDrain(con *console, st *lb.Status, node string) {
	order := st.Drains[node]
	_, why := st.Empty(node)
	text := fmt.Sprintf("%s is drained since %s: %s", node, ago(time.Since(order.Since)), why)
	p := st.People[node]
	if left, known := p.Left(order.Since); known && left > 0 {
		text += fmt.Sprintf("; at this rate about %v more", left)
	}
	if !order.Deadline.IsZero() {
		text += fmt.Sprintf("; the deadline is %s", order.Deadline.Local().Format(time.DateTime))
	}
	fmt.Fprintln(con.out, printable(text))
	for _, l := range p.Logins {
		idle := "-"
		if !l.Last.IsZero() {
			idle = ago(p.At.Sub(l.Last))
		}
		fmt.Fprintf(con.out, "  %-12s %-8s from %-20s idle %s\n", printable(l.User), printable(dash(l.TTY)), printable(dash(l.From)), idle)
	}
}

type lbTopCmd struct {
	lbSocket
	Every time.Duration `default:"2s" help:"How often."`
	Count int           `help:"End after so many tables; without end unless said."`
}

func (*lbTopCmd) Help() string { return "Example: holdfast lb top --every 5s" }

func (c *lbTopCmd) Run(con *console) error {
	if c.Every < 100*time.Millisecond {
		return &exitError{exitUsage, fmt.Errorf("--every %v: 100ms is the least", c.Every)}
	}
	before, err := c.status(con)
	last := time.Now()
	for n := 0; err == nil && (c.Count == 0 || n < c.Count); n++ {
		select {
		case <-con.ctx.Done():
			return nil
		case <-time.After(c.Every):
		}
		var now lb.Status
		if now, err = c.status(con); err != nil {
			break
		}
		err = con.table([]string{"SERVICE", "NODE", "STATE", "WEIGHT", "ACTIVE", "NEW/S", "KB/S"}, topRows(&before, &now, time.Since(last)))
		before, last = now, time.Now()
	}
	return err
}

// topRows are the rates between two looks.
func topRows(before, now *lb.Status, took time.Duration) (rows [][]string) {
	type pair struct{ service, node string }
	old := map[pair]lb.ServerStatus{}
	for _, v := range before.Services {
		for _, r := range v.Servers {
			old[pair{v.Name, r.Node}] = r
		}
	}
	for _, v := range now.Services {
		for _, r := range v.Servers {
			was := old[pair{v.Name, r.Node}]
			if r.Connections < was.Connections { // the server was made anew
				was = lb.ServerStatus{}
			}
			rows = append(rows, []string{
				v.Name, r.Node, serverState(&r), strconv.Itoa(r.Weight), fmt.Sprint(r.Active),
				fmt.Sprintf("%.1f", float64(r.Connections-was.Connections)/took.Seconds()),
				fmt.Sprintf("%.1f", float64(r.BytesIn-min(r.BytesIn, was.BytesIn))/1000/took.Seconds()),
			})
		}
	}
	return rows
}

type lbSessionsCmd struct {
	lbSocket
	Node string `help:"Only those on this real server."`
}

func (*lbSessionsCmd) Help() string { return "Example: holdfast lb sessions --node fbfront2" }

func (c *lbSessionsCmd) Run(con *console) error {
	var all []lb.Session
	if err := c.ask(con, "GET", "sessions", &all); err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(s lb.Session) bool { return c.Node != "" && s.Node != c.Node })
	if c.JSON {
		return con.json(all)
	}
	rows := make([][]string, 0, len(all))
	for _, s := range all {
		client, state := s.Client.String(), s.State
		if s.Template() {
			client, state = s.Client.Addr().String(), "at home"
		}
		rows = append(rows, []string{client, s.Virtual.String(), s.Node, state, s.Expires.String()})
	}
	return con.table([]string{"CLIENT", "ADDRESS", "NODE", "STATE", "EXPIRES"}, rows)
}

type lbExplainCmd struct {
	lbSocket
	Client netip.Addr `arg:"" help:"The client's address."`
}

func (*lbExplainCmd) Help() string { return "Example: holdfast lb explain 10.3.7.21" }

func (c *lbExplainCmd) Run(con *console) error {
	var story []string
	if err := c.ask(con, "GET", "explain/"+c.Client.String(), &story); err != nil {
		return err
	}
	if c.JSON {
		return con.json(story)
	}
	for _, sentence := range story {
		fmt.Fprintln(con.out, printable(sentence))
	}
	return nil
}

type lbDrainCmd struct {
	lbSocket
	Node     string        `arg:"" help:"The real server."`
	Deadline time.Duration `help:"When people are told that it ends, such as 2h. Nobody is thrown out." placeholder:"DURATION"`
	Message  string        `help:"What people are told beside that." placeholder:"TEXT"`
	Force    bool          `help:"Also when a service is left without its quorum."`
	Wait     bool          `help:"Return when it is empty: no login and no connection."`
}

func (*lbDrainCmd) Help() string {
	return "Examples:\n" +
		"  holdfast lb drain fbfront2 --deadline 2h --message 'new kernel'\n" +
		"  holdfast lock frontend-reboot -- holdfast lb drain fbfront2 --wait    # one frontend at a time\n\n" +
		"The drain stands in the cluster's store: it survives reboots, until holdfast lb undrain."
}

func (c *lbDrainCmd) Run(con *console) error {
	if err := c.order(con); err != nil {
		return err
	}
	if !c.Wait {
		_, err := fmt.Fprintf(con.out, "%s gets nobody new; holdfast lb status tells who is on it still\n", printable(c.Node))
		return err
	}
	return c.wait(con)
}

// order has all directors send nobody new to the node.
func (c *lbDrainCmd) order(con *console) error {
	args := url.Values{}
	if c.Deadline != 0 {
		args.Set("deadline", c.Deadline.String())
	}
	if c.Message != "" {
		args.Set("message", c.Message)
	}
	if c.Force {
		args.Set("force", "1")
	}
	var order lb.Drain
	return c.ask(con, "POST", "drain/"+url.PathEscape(c.Node)+"?"+args.Encode(), &order)
}

// wait tells what keeps the node from being empty, whenever that changes.
func (c *lbDrainCmd) wait(con *console) error {
	said := ""
	for {
		st, err := c.status(con)
		if err != nil {
			return err
		}
		empty, why := st.Empty(c.Node)
		if _, drained := st.Drains[c.Node]; !drained && said != "" {
			return errors.New("the drain was ended by somebody")
		}
		if why != said {
			fmt.Fprintln(con.out, printable(why))
		}
		if said = cmp.Or(why, said); empty {
			return nil
		}
		select {
		case <-con.ctx.Done():
			return con.ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

type lbUndrainCmd struct {
	lbSocket
	Node string `arg:"" help:"The real server."`
}

func (*lbUndrainCmd) Help() string { return "Example: holdfast lb undrain fbfront2" }

func (c *lbUndrainCmd) Run(con *console) error {
	var nothing any
	if err := c.ask(con, "POST", "undrain/"+url.PathEscape(c.Node), &nothing); err != nil {
		return err
	}
	_, err := fmt.Fprintf(con.out, "%s gets new people again\n", printable(c.Node))
	return err
}

type lbFirewallCmd struct {
	lbSocket
	For string `help:"nftables or iptables; what the cluster file says unless said." placeholder:"WHAT"`
}

func (*lbFirewallCmd) Help() string {
	return "Example: holdfast lb firewall --for nftables > /etc/nftables.d/holdfast.nft\n\n" +
		"With lb.firewall in the cluster file the agent makes these rules itself, and puts them back."
}

func (c *lbFirewallCmd) Run(con *console) error {
	var text string
	if err := c.ask(con, "GET", "firewall?for="+url.QueryEscape(c.For), &text); err != nil {
		return err
	}
	_, err := fmt.Fprint(con.out, text)
	return err
}

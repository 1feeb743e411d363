package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/vrrp"
)

type vipCmd struct {
	List    vipListCmd    `cmd:"" help:"List this node's virtual addresses: state, holder, priority."`
	Show    vipShowCmd    `cmd:"" help:"Show one: addresses, peers, what is tracked, history."`
	Explain vipExplainCmd `cmd:"" help:"Tell who holds it, since when and why, and who would be next."`
	Move    vipMoveCmd    `cmd:"" help:"Move it to another node without loss."`
	Hold    vipHoldCmd    `cmd:"" help:"Take it to this node now and keep it until released."`
	Release vipReleaseCmd `cmd:"" help:"End hold and move: priorities decide again."`
	Plan    vipPlanCmd    `cmd:"" help:"Compare with the live kernel without touching it."`
	Probe   vipProbeCmd   `cmd:"" help:"Test the path: who answers, adverts, firewall, sysctl, MTU."`
	Guard   vipGuardCmd   `cmd:"" hidden:"" help:"Withdraw virtual addresses when the agent that started this is gone."`
}

// vipConnection is connection for the unit that moves addresses, which answers
// with the rest of the agent dead.
type vipConnection struct {
	Socket string `default:"/run/holdfast/net.sock" env:"HOLDFAST_NET_SOCKET" help:"Admin socket of the net unit on this machine."`
	Server string `env:"HOLDFAST_SERVER" help:"Ask this agent over HTTPS instead, such as https://fbservice1:8501." placeholder:"URL"`
	PKI    string `name:"pki" default:"/etc/holdfast/pki" env:"HOLDFAST_PKI" help:"An admin's certificate, for --server."`
	Token  string `name:"token-file" env:"HOLDFAST_TOKEN_FILE" help:"File with a token, for --server." placeholder:"FILE"`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// ask asks the admin tree and decodes the answer into found.
func (c *vipConnection) ask(con *console, method, path string, args url.Values, found any) error {
	to := connection{Socket: c.Socket, Server: c.Server, PKI: c.PKI, Token: c.Token}
	return to.ask(func(client *api.Client) error { return client.VIP(con.ctx, method, path, args, found) })
}

type vipListCmd struct{ vipConnection }

func (*vipListCmd) Help() string {
	return "Examples:\n  holdfast vip list\n  holdfast vip list --server https://fbservice2:8501"
}

func (c *vipListCmd) Run(con *console) error {
	views := []vrrp.View{}
	if err := c.ask(con, "GET", "list", nil, &views); err != nil {
		return err
	}
	if c.JSON {
		return con.json(views)
	}
	rows := make([][]string, 0, len(views))
	for i := range views {
		v := &views[i]
		rows = append(rows, []string{
			v.Name, firstAddress(v), v.State, lastedSince(v.Since), fallback(v.Holder, "-"),
			fmt.Sprint(v.Priority), fmt.Sprint(v.VRID), fallback(v.Interface, "-"), vipRemark(v),
		})
	}
	return con.table([]string{"NAME", "ADDRESS", "STATE", "SINCE", "HOLDER", "PRIORITY", "VRID", "INTERFACE", "REMARK"}, rows)
}

func fallback(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func lastedSince(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return ago(time.Since(at))
}

func firstAddress(v *vrrp.View) string {
	switch n := len(v.Addresses); n {
	case 0:
		return "-"
	case 1:
		return v.Addresses[0].Address.Addr().String()
	default:
		return fmt.Sprintf("%s +%d", v.Addresses[0].Address.Addr(), n-1)
	}
}

// vipRemark is what an admin should see at once.
func vipRemark(v *vrrp.View) string {
	var words []string
	if v.Mode != "" {
		words = append(words, v.Mode)
	}
	if l := v.Lease; l != nil {
		switch {
		case l.Held:
			words = append(words, "fenced")
		case v.State == "active":
			words = append(words, "fenced: waits for its lease")
		case !l.Store:
			words = append(words, "fenced: no store")
		default:
			words = append(words, "fenced")
		}
	}
	if v.Claimant != "" {
		words = append(words, "another answers: "+v.Claimant)
	}
	for i := range v.Peers {
		if len(v.Peers[i].Disagrees) > 0 {
			words = append(words, fallback(v.Peers[i].Node, v.Peers[i].Address.String())+" disagrees")
		}
	}
	if v.Link.Why != "" {
		words = append(words, v.Link.Why)
	}
	return fallback(strings.Join(words, "; "), "-")
}

type vipShowCmd struct {
	vipConnection
	Name string `arg:"" help:"Name of the VIP."`
}

func (*vipShowCmd) Help() string { return "Example: holdfast vip show dns1" }

func (c *vipShowCmd) Run(con *console) error {
	var v vrrp.View
	if err := c.ask(con, "GET", "show/"+url.PathEscape(c.Name), nil, &v); err != nil {
		return err
	}
	if c.JSON {
		return con.json(v)
	}
	rows := [][]string{
		{"state", v.State + " for " + lastedSince(v.Since) + ": " + v.Reason},
		{"holder", fallback(v.Holder, "nobody that is known")},
		{"priority", fmt.Sprintf("%d (%d by the file)", v.Priority, v.Base)},
		{"order", strings.Join(v.Order, ", ")},
		{"router", fmt.Sprintf("VRID %d, version %d, every %s, on %s", v.VRID, v.Version, time.Duration(v.Interval), fallback(v.Interface, "no interface"))},
		{"remark", vipRemark(&v)},
	}
	for _, a := range v.Addresses {
		rows = append(rows, []string{"address", fmt.Sprintf("%s: %s", a.Address, map[bool]string{true: "on the interface", false: "not here"}[a.Present])})
	}
	for i := range v.Tracks {
		rows = append(rows, []string{"track", fmt.Sprintf("%s: %s, weight %d", v.Tracks[i].Name, v.Tracks[i].State, v.Tracks[i].Weight)})
	}
	for i := range v.Peers {
		p := &v.Peers[i]
		rows = append(rows, []string{"peer", fmt.Sprintf("%s: priority %d, %s ago", fallback(p.Node, p.Address.String()), p.Priority, lastedSince(p.Heard))})
	}
	for _, t := range v.History {
		rows = append(rows, []string{"history", fmt.Sprintf("%s %s → %s: %s", t.At.Local().Format(time.DateTime), t.From, t.To, t.Reason)})
	}
	return con.table([]string{"WHAT", "VALUE"}, rows)
}

type vipExplainCmd struct {
	vipConnection
	Name string `arg:"" help:"Name of the VIP."`
}

func (*vipExplainCmd) Help() string { return "Example: holdfast vip explain dns1" }

func (c *vipExplainCmd) Run(con *console) error {
	var e vrrp.Explanation
	if err := c.ask(con, "GET", "explain/"+url.PathEscape(c.Name), nil, &e); err != nil {
		return err
	}
	if c.JSON {
		return con.json(e)
	}
	fmt.Fprintf(con.out, "%s %s\n", con.paint(bold, printable(e.View.Name)), firstAddress(&e.View))
	for _, sentence := range e.Story {
		fmt.Fprintln(con.out, "  "+printable(sentence))
	}
	return nil
}

type vipMoveCmd struct {
	vipConnection
	Name string `arg:"" help:"Name of the VIP."`
	To   string `help:"Node that takes and keeps it; the next in the order unless said." placeholder:"NODE"`
}

func (*vipMoveCmd) Help() string {
	return "Examples:\n" +
		"  holdfast vip move dns1                    # on the node that holds it: to the next in the order\n" +
		"  holdfast vip move dns1 --to fbservice2    # fbservice2 takes it, and keeps it until vip release\n\n" +
		"The old holder answers until the new one advertises, so no packet is lost. Its log relay hears its clients out before,\n" +
		"wherever this is typed; a holder that can't be told of it is named, and loses the address all the same.\n" +
		"Without --to the old holder then stands back, until holdfast vip release there."
}

func (c *vipMoveCmd) Run(con *console) error {
	args := url.Values{}
	if c.To != "" {
		args.Set("to", c.To)
	}
	return c.order(con, "move/"+url.PathEscape(c.Name), args)
}

// order gives an order and tells what came of it: exit status 1 when it had
// no effect.
func (c *vipConnection) order(con *console, path string, args url.Values) error {
	var moved vrrp.Moved
	if err := c.ask(con, "POST", path, args, &moved); err != nil {
		return err
	}
	if c.JSON {
		if err := con.json(moved); err != nil {
			return err
		}
	}
	text := moved.Text
	if moved.Note != "" {
		text += "; " + moved.Note
	}
	if !moved.Done {
		return errors.New(text)
	}
	if c.JSON {
		return nil
	}
	_, err := fmt.Fprintln(con.out, printable(text))
	return err
}

type vipHoldCmd struct {
	vipConnection
	Name string `arg:"" help:"Name of the VIP."`
}

func (*vipHoldCmd) Help() string {
	return "Example: holdfast vip hold dns1\n\nIt stays here over restarts of the agent, not of the machine, until holdfast vip release."
}

func (c *vipHoldCmd) Run(con *console) error {
	return c.order(con, "hold/"+url.PathEscape(c.Name), nil)
}

type vipReleaseCmd struct {
	vipConnection
	Name string `arg:"" help:"Name of the VIP."`
}

func (*vipReleaseCmd) Help() string {
	return "Example: holdfast vip release dns1\n\nIf the address goes by that, the log relay that loses it is told before, as by vip move."
}

func (c *vipReleaseCmd) Run(con *console) error {
	var v vrrp.Released
	if err := c.ask(con, "POST", "release/"+url.PathEscape(c.Name), nil, &v); err != nil {
		return err
	}
	if c.JSON {
		return con.json(v)
	}
	text := fmt.Sprintf("priorities decide about %s again; %s holds it", v.Name, fallback(v.Holder, "nobody that is known"))
	if v.Note != "" {
		text += "; " + v.Note
	}
	_, err := fmt.Fprintln(con.out, printable(text))
	return err
}

type vipPlanCmd struct{ vipConnection }

func (*vipPlanCmd) Help() string {
	return "Example: holdfast vip plan\n\nPrints what would be typed to make the kernel what it should be; nothing when it is."
}

func (c *vipPlanCmd) Run(con *console) error {
	var plan []vrrp.PlanLine
	if err := c.ask(con, "GET", "plan", nil, &plan); err != nil {
		return err
	}
	if c.JSON {
		return con.json(plan)
	}
	if len(plan) == 0 {
		_, err := fmt.Fprintln(con.out, "# the kernel has what it should have")
		return err
	}
	for _, line := range plan {
		fmt.Fprintf(con.out, "%s    # %s: %s\n", printable(line.Command), printable(line.Router), printable(line.Why))
	}
	return nil
}

type vipProbeCmd struct {
	vipConnection
	Name string `arg:"" optional:"" help:"Only this VIP."`
}

func (*vipProbeCmd) Help() string {
	return "Examples:\n  holdfast vip probe\n  holdfast vip probe dns1\n\nExit status 6 when something fails."
}

func (c *vipProbeCmd) Run(con *console) error {
	path := "probe"
	if c.Name != "" {
		path += "/" + url.PathEscape(c.Name)
	}
	var findings []vrrp.Finding
	if err := c.ask(con, "GET", path, nil, &findings); err != nil {
		return err
	}
	failed := 0
	colours := map[vrrp.Level]string{vrrp.OK: green, vrrp.Warn: yellow, vrrp.Fail: red}
	for _, f := range findings {
		if f.Level == vrrp.Fail {
			failed++
		}
		if c.JSON {
			continue
		}
		fmt.Fprintf(con.out, "%s %s %s: %s\n", con.paint(colours[f.Level], fmt.Sprintf("%-4s", f.Level)), fallback(printable(f.Router), "node"), f.What, printable(f.Text))
		if f.Remedy != "" && f.Level != vrrp.OK {
			fmt.Fprintf(con.out, "     → %s\n", printable(f.Remedy))
		}
	}
	if c.JSON {
		if err := con.json(findings); err != nil {
			return err
		}
	}
	if failed > 0 {
		return &exitError{exitDegraded, fmt.Errorf("probe: %d of %d findings fail", failed, len(findings))}
	}
	return nil
}

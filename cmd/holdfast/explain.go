package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/api"
	"holdfast/vrrp"
)

type explainCmd struct {
	connection
	Name string `arg:"" help:"A service, its name in DNS, or a virtual address by its name."`
}

func (*explainCmd) Help() string {
	return "Exit status 6 when a service has no instance that is answered.\n\n" +
		"Examples:\n  holdfast explain apt\n  holdfast explain apt.service.virtual\n  holdfast explain dns1"
}

func (c *explainCmd) Run(con *console) error {
	return c.ask(func(client *api.Client) error {
		e, err := client.Explain(con.ctx, serviceOfName(c.Name))
		if api.NotFound(err) || api.NoLeader(err) {
			if found, err := c.explainVIP(con, client); found {
				return err
			}
		}
		if err != nil {
			return err
		}
		if c.JSON {
			err = con.json(e)
		} else {
			err = con.explain(e)
		}
		for _, one := range e.Instances {
			if one.Answers {
				return err
			}
		}
		if err == nil {
			err = &exitError{exitDegraded, errors.New(e.Why)}
		}
		return err
	})
}

// serviceOfName finds the service in "apt.service.virtual" and "apt.service".
func serviceOfName(name string) string {
	name = strings.TrimSuffix(name, ".")
	service, _, _ := strings.Cut(name, ".service")
	return service
}

// explainVIP is not found when there is no such address here.
func (c *explainCmd) explainVIP(con *console, client *api.Client) (found bool, err error) {
	var e vrrp.Explanation
	if err := client.VIP(con.ctx, "GET", "explain/"+url.PathEscape(c.Name), nil, &e); err != nil {
		return false, nil
	}
	if c.JSON {
		return true, con.json(e)
	}
	fmt.Fprintf(con.out, "%s %s\n", con.paint(bold, printable(e.View.Name)), firstAddress(&e.View))
	for _, sentence := range e.Story {
		fmt.Fprintln(con.out, "  "+printable(sentence))
	}
	return true, nil
}

func (c *console) explain(e api.Explanation) error {
	fmt.Fprintln(c.out, c.paint(bold, printable(e.Headline())))
	if e.Replica.Confirmed {
		fmt.Fprintln(c.out, e.Confirmation())
	} else {
		fmt.Fprintln(c.out, c.paint(red, e.Confirmation()))
	}
	var rows [][]string
	for _, one := range e.Instances {
		in := c.paint(green, "yes")
		if !one.Answers {
			in = c.paint(red, "no")
		}
		rows = append(rows, []string{one.Node, net.JoinHostPort(one.Address, strconv.Itoa(int(one.Port))), in, oneLine(one.Why, 120)})
		for _, check := range one.Checks {
			rows = append(rows, []string{"", "  " + check.ID, string(check.Status), strings.TrimSpace(lasted(check.Since, e.Time) + " " + oneLine(check.Output, 100))})
		}
	}
	fmt.Fprintln(c.out)
	if err := c.table([]string{"NODE", "ADDRESS", "ANSWERED", "WHY"}, rows); err != nil || len(e.History) == 0 {
		return err
	}
	rows = nil
	for _, step := range e.History {
		rows = append(rows, []string{step.Time.Local().Format(time.DateTime), step.Node, step.Check, string(step.From) + " → " + string(step.To), oneLine(step.Output, 100)})
	}
	fmt.Fprintln(c.out)
	return c.table([]string{"WHEN", "NODE", "CHECK", "CHANGED", "OUTPUT"}, rows)
}

// tellTime is how long an explanation may keep one of DNS's workers.
const tellTime = 500 * time.Millisecond

// tellRest is how long core is not asked any more when it did not answer in time.
const tellRest = 30 * time.Second

// tellByCore explains a name in lines, by way of core's socket: a service, or else
// a virtual address of this node. None: there is neither. DNS's workers wait for
// it, so that one alone does at a time, and none for a core that hangs.
func tellByCore(socket string) func(name string) []string {
	var one sync.Mutex
	var rested time.Time // before it nobody asks; guarded by one
	ask := askCore(socket, tellTime)
	return func(name string) []string {
		if !one.TryLock() {
			return []string{"Another question of this kind is being answered: ask again"}
		}
		defer one.Unlock()
		if time.Now().Before(rested) {
			return []string{"Nobody can explain it now: core did not answer a moment ago"}
		}
		lines, late := ask(name)
		if late {
			rested = time.Now().Add(tellRest)
		}
		return lines
	}
}

// askCore is tellByCore's question; late: there was no answer within a time.
func askCore(socket string, within time.Duration) func(name string) (lines []string, late bool) {
	return func(name string) ([]string, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		client, err := api.NewClient(api.ClientConfig{Socket: socket})
		if err != nil {
			return nil, false
		}
		defer client.Close()
		e, err := client.Explain(ctx, name)
		if err == nil {
			return e.Lines(), false
		}
		var v vrrp.Explanation
		if api.NotFound(err) {
			err = client.VIP(ctx, "GET", "explain/"+url.PathEscape(name), nil, &v)
		}
		switch {
		case err == nil:
			return append([]string{v.View.Name + " " + firstAddress(&v.View)}, v.Story...), false
		case api.NotFound(err):
			return nil, false
		}
		return []string{"Nobody can explain it now: " + err.Error()}, ctx.Err() != nil
	}
}

package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/logrelay"
)

type logsCmd struct {
	Tail   logsTailCmd   `cmd:"" help:"Print lines of all service nodes as they come in, in one order."`
	Grep   logsGrepCmd   `cmd:"" help:"Print the lines that the journals of all service nodes have, the ones that match."`
	Stats  logsStatsCmd  `cmd:"" help:"Count lines by host, program, severity or input."`
	Top    logsTopCmd    `cmd:"" help:"Show again and again who sends most."`
	Where  logsWhereCmd  `cmd:"" help:"Tell which service nodes have a host's lines, and its last."`
	Status logsStatusCmd `cmd:"" help:"Show one node's log relay: the journal, whether senders wait, who is silent."`
	Queues logsQueuesCmd `cmd:"" help:"Show what each output of all service nodes has yet to take, and why."`
	Flush  logsFlushCmd  `cmd:"" help:"Have all outputs of a node take now what waits."`
	Pause  logsPauseCmd  `cmd:"" help:"Read no more RELP and TCP: senders keep their lines."`
	Resume logsResumeCmd `cmd:"" help:"Read again."`
	Replay logsReplayCmd `cmd:"" help:"Send a target once more what the journal has from a time on."`
}

// logsRelay says which relay a command asks.
type logsRelay struct {
	Socket string `default:"/run/holdfast/logs.sock" env:"HOLDFAST_LOGS_SOCKET" help:"Admin socket of the log relay on this machine."`
	Server string `env:"HOLDFAST_SERVER" help:"Ask this agent over HTTPS instead, such as https://fbservice1:8501." placeholder:"URL"`
	PKI    string `name:"pki" default:"/etc/holdfast/pki" env:"HOLDFAST_PKI" help:"An admin's certificate, or on a service node that node's."`
	Token  string `name:"token-file" env:"HOLDFAST_TOKEN_FILE" help:"File with a token, for HTTPS." placeholder:"FILE"`
}

// connection is one to a URL, or to the socket if there is none.
func (c *logsRelay) connection(server string) *connection {
	return &connection{Socket: c.Socket, Server: server, PKI: c.PKI, Token: c.Token}
}

// ask sends a request to the relay at server, or at the socket if that is "",
// and gives the answer's body to f.
func (c *logsRelay) ask(con *console, server, method, path string, args url.Values, f func(io.Reader) error) error {
	err := c.connection(server).ask(func(client *api.Client) error {
		answer, err := client.Logs(con.ctx, method, path, args)
		if err != nil {
			return err
		}
		defer answer.Close()
		return f(answer)
	})
	var refused *api.Error
	if errors.As(err, &refused) && refused.Status == http.StatusBadRequest {
		return &exitError{exitUsage, err}
	}
	return err
}

func (c *logsRelay) status(con *console, server string) (status logrelay.Status, err error) {
	err = c.ask(con, server, http.MethodGet, "status", nil, status.Read)
	return status, err
}

// act has the one relay that is asked do something.
func (c *logsRelay) act(con *console, path string, args url.Values, done string) error {
	return c.ask(con, c.Server, http.MethodPost, path, args, func(io.Reader) error {
		_, err := fmt.Fprintln(con.out, done)
		return err
	})
}

type logsStatusCmd struct {
	logsRelay
	JSON bool `name:"json" help:"Print JSON."`
}

func (*logsStatusCmd) Help() string {
	return "Example: holdfast logs status\n\nExit status 6: senders are held back, a host is silent, or an output takes nothing."
}

func (c *logsStatusCmd) Run(con *console) error {
	status, err := c.status(con, c.Server)
	if err != nil {
		return err
	}
	if c.JSON {
		err = con.json(status)
	} else {
		err = c.print(con, status)
	}
	if err != nil {
		return err
	}
	for _, o := range status.Outputs {
		if o.Error != "" {
			return &exitError{exitDegraded, fmt.Errorf("output %s takes no lines: %s", o.Name, o.Error)}
		}
	}
	switch {
	case status.Held != "":
		return &exitError{exitDegraded, errors.New(status.Held)}
	case len(status.Silent) > 0:
		return &exitError{exitDegraded, fmt.Errorf("%d hosts are silent", len(status.Silent))}
	}
	return nil
}

func (c *logsStatusCmd) print(con *console, status logrelay.Status) error {
	fmt.Fprintf(con.out, "%s: journal %s, %.1f MiB, %d lines since it was made\n", status.Node, status.Journal, float64(status.Bytes)/(1<<20), status.End)
	for _, host := range status.Silent {
		fmt.Fprintln(con.out, con.paint(red, printable(host)+" logged every minute and stopped"))
	}
	for _, gap := range status.Gaps {
		fmt.Fprintf(con.out, "%s lacks %d lines behind its number %d, seen at %s\n", printable(gap.Host), gap.Lines, gap.After, gap.Time.Local().Format(time.DateTime))
	}
	if status.Doubled > 0 {
		fmt.Fprintf(con.out, "%d lines are here twice since it was started: they were stored, here or on another node, and clients, which were not told, sent them again\n", status.Doubled)
	}
	return con.table(queueHeading(), queueRows(status, time.Now()))
}

func queueHeading() []string {
	return []string{"NODE", "OUTPUT", "NEXT", "WAITING", "OLDEST", "WHY"}
}

func queueRows(status logrelay.Status, now time.Time) (rows [][]string) {
	for _, o := range status.Outputs {
		oldest := ""
		if o.Oldest != nil {
			oldest = ago(now.Sub(*o.Oldest))
		}
		why := o.Error
		if o.Since != nil {
			why = fmt.Sprintf("for %s: %s", ago(now.Sub(*o.Since)), o.Error)
		}
		rows = append(rows, []string{status.Node, o.Name, strconv.FormatUint(o.Next, 10), strconv.FormatUint(o.Waiting, 10), oldest, oneLine(why, 100)})
	}
	return rows
}

type logsQueuesCmd struct {
	logsAll
	JSON bool `name:"json" help:"Print JSON."`
}

func (*logsQueuesCmd) Help() string {
	return "Example: holdfast logs queues\n\nExit status 6: an output takes no lines, or a node does not answer."
}

func (c *logsQueuesCmd) Run(con *console) error {
	var list []logrelay.Status
	stuck := ""
	missing, err := c.each(con, func(p relayPeer) error {
		status, err := c.status(con, p.server)
		if err != nil {
			return err
		}
		for _, o := range status.Outputs {
			if o.Error != "" {
				stuck = status.Node + ": output " + o.Name
			}
		}
		list = append(list, status)
		return nil
	})
	if err != nil {
		return err
	}
	if c.JSON {
		err = con.json(list)
	} else {
		var rows [][]string
		for _, status := range list {
			rows = append(rows, queueRows(status, time.Now())...)
		}
		err = con.table(queueHeading(), rows)
	}
	if err == nil && stuck != "" {
		return &exitError{exitDegraded, fmt.Errorf("%s takes no lines", stuck)}
	}
	return errors.Join(err, missing)
}

type logsFlushCmd struct{ logsRelay }

func (*logsFlushCmd) Help() string {
	return "Example: holdfast logs flush\n\nIt waits until all outputs have what the journal had, ten seconds at most, and then says which have not."
}

func (c *logsFlushCmd) Run(con *console) error {
	return c.act(con, "flush", nil, "all outputs have what was in the journal")
}

type logsPauseCmd struct{ logsRelay }

func (c *logsPauseCmd) Run(con *console) error {
	return c.act(con, "pause", nil, "RELP and TCP are read no more; holdfast logs resume ends that")
}

type logsResumeCmd struct{ logsRelay }

func (c *logsResumeCmd) Run(con *console) error {
	return c.act(con, "resume", nil, "RELP and TCP are read")
}

type logsReplayCmd struct {
	logsRelay
	Output string `arg:"" help:"A target below logs.forward."`
	From   string `required:"" help:"A time, or how long ago: 2026-11-25T12:00:00Z, 6h." placeholder:"TIME"`
	Of     string `help:"Send the lines that this other node took, as far as they are here: one that is lost with its disk." placeholder:"NODE"`
}

func (*logsReplayCmd) Help() string {
	return "Example: holdfast logs replay siem --from 6h\n\nThe target gets these lines once more, and then what comes. logs.replay_mib says how much the journal keeps.\n\n" +
		"Example: holdfast logs replay siem --from 6h --of fbservice2\n\nThe target gets what fbservice2 took and this node has a copy of (logs.replicas: 2). Of a node that comes back with its disk it gets the lines anyway."
}

func (c *logsReplayCmd) Run(con *console) error {
	from, err := instant(c.From, time.Now())
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--from: %w", err)}
	}
	args, done := url.Values{"output": {c.Output}, "from": {from.Format(time.RFC3339Nano)}}, c.Output+" gets the lines from then on once more"
	if c.Of != "" {
		args.Set("of", c.Of)
		done = fmt.Sprintf("%s gets the lines from then on that %s took and this node has", c.Output, c.Of)
	}
	return c.act(con, "replay", args, done)
}

// instant reads a time: RFC 3339, the same without its zone or its time of day,
// or how long before now.
func instant(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 {
			return now.AddDate(0, 0, -n), nil
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: want 2026-11-25T12:00:00Z, \"2026-11-25 12:00\", 10m or 2d", text)
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/api"
	"holdfast/logrelay"
)

// logsAll asks the relays of all nodes that run logs.
type logsAll struct {
	logsRelay
	This bool `help:"Ask this one relay only, not those of the other service nodes."`
}

// relayPeer is a relay and where it is asked; "": at the socket.
type relayPeer struct{ name, server string }

// peers are all relays, the one that is asked first.
func (c *logsAll) peers(con *console) ([]relayPeer, error) {
	status, err := c.status(con, c.Server)
	if err != nil {
		return nil, err
	}
	list := []relayPeer{{status.Node, c.Server}}
	for _, p := range status.Peers {
		if p.Name != status.Node && !c.This {
			list = append(list, relayPeer{p.Name, p.URL})
		}
	}
	return list, nil
}

// each calls f for all relays in turn. missing names those for which it failed;
// err is that the first can't be asked.
func (c *logsAll) each(con *console, f func(relayPeer) error) (missing, err error) {
	list, err := c.peers(con)
	if err != nil {
		return nil, err
	}
	for i, p := range list {
		err := errNoHTTPS
		if i == 0 || p.server != "" {
			err = f(p)
		}
		if usage := (*exitError)(nil); errors.As(err, &usage) && usage.status == exitUsage {
			return nil, err
		}
		if err != nil {
			missing = errors.Join(missing, absent(p.name, err))
		}
	}
	return missing, nil
}

var errNoHTTPS = errors.New("its API has no HTTPS")

// absent says that a node's part is missing.
func absent(node string, err error) error {
	return &exitError{exitDegraded, fmt.Errorf("what only %s has is missing: %w", node, err)}
}

// logsSelect says which lines are wanted.
type logsSelect struct {
	logsAll
	Where    string `short:"w" name:"nodes" help:"Only lines of these hosts, a node set: fbcn[01-16], @compute." placeholder:"NODESET"`
	Since    string `help:"Only lines received from then on: a time, or how long ago." placeholder:"TIME"`
	Until    string `help:"Only lines received before: a time, or how long ago." placeholder:"TIME"`
	Priority string `short:"p" help:"Only lines of this severity or a worse one: emerg, alert, crit, err, warning, notice, info, debug, or 0 to 7." placeholder:"SEVERITY"`
	If       string `name:"if" help:"Only lines that fit this condition; see logrelay/README.md." placeholder:"CONDITION"`
	JSON     bool   `name:"json" help:"Print JSON."`
}

// query makes the query; since is its beginning when none is said, "" none.
func (c *logsSelect) query(since string) (q logrelay.Query, err error) {
	q = logrelay.Query{Nodes: c.Where, If: c.If, Severity: logrelay.NoSeverity}
	now := time.Now()
	set := func(at *time.Time, flag, text string) {
		if text != "" {
			t, failed := instant(text, now)
			if *at = t; failed != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", flag, failed))
			}
		}
	}
	if c.Since != "" {
		since = c.Since
	}
	set(&q.Since, "--since", since)
	set(&q.Until, "--until", c.Until)
	if c.Priority != "" {
		names := []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}
		if q.Severity = slices.Index(names, c.Priority); q.Severity < 0 {
			n, failed := strconv.Atoi(c.Priority)
			if q.Severity = n; failed != nil || n < 0 || n > 7 {
				err = errors.Join(err, fmt.Errorf("--priority %q: want one of %s, or 0 to 7", c.Priority, strings.Join(names, ", ")))
			}
		}
	}
	if err != nil {
		err = &exitError{exitUsage, err}
	}
	return q, err
}

// lines prints what the query gives, of all relays in one order, most lines at
// most; 0: all.
func (c *logsSelect) lines(con *console, q logrelay.Query, most int) error {
	list, err := c.peers(con)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(con.ctx)
	defer cancel()
	var from []logrelay.Stream
	var missing error
	for i, p := range list {
		body, end, err := io.ReadCloser(nil), func() {}, errNoHTTPS
		if i == 0 || p.server != "" {
			body, end, err = c.open(ctx, p.server, q.Values())
		}
		if refused := (*api.Error)(nil); errors.As(err, &refused) && refused.Status == http.StatusBadRequest {
			return &exitError{exitUsage, err}
		}
		if err != nil {
			missing = errors.Join(missing, absent(p.name, err))
			continue
		}
		defer end()
		defer body.Close()
		from = append(from, logrelay.Stream{Node: p.name, Body: body})
	}
	if missing != nil && q.Follow {
		fmt.Fprintf(con.err, "holdfast: %v\n", missing)
	}
	encoder := json.NewEncoder(con.out)
	encoder.SetEscapeHTML(false)
	enough := errors.New("enough")
	count := 0
	merge := logrelay.Merge
	if q.Follow {
		merge = func(ctx context.Context, from []logrelay.Stream, emit func(string, *logrelay.Entry) error) (map[string]error, error) {
			return logrelay.Follow(ctx, from, func(node string, why error) {
				fmt.Fprintf(con.err, "holdfast: %s: %s\n", node, printable(why.Error()))
			}, emit)
		}
	}
	broken, err := merge(ctx, from, func(node string, e *logrelay.Entry) error {
		if count++; most > 0 && count > most {
			return enough
		}
		if c.JSON {
			return encoder.Encode(struct {
				Node string `json:"node"`
				*logrelay.Entry
			}{node, e})
		}
		line := e.Line
		if con.isTerm {
			line = printable(line)
		}
		_, err := fmt.Fprintln(con.out, line)
		return err
	})
	for node, why := range broken {
		missing = errors.Join(missing, absent(node, why))
	}
	if con.ctx.Err() != nil {
		return nil // the admin has seen enough
	}
	if errors.Is(err, enough) {
		return missing // these many lines are not those of all nodes
	}
	if err != nil {
		return err
	}
	return missing
}

// open sends the query to one relay.
func (c *logsSelect) open(ctx context.Context, server string, args url.Values) (io.ReadCloser, func(), error) {
	client, err := c.connection(server).open()
	if err != nil {
		return nil, nil, err
	}
	body, err := client.Logs(ctx, http.MethodGet, "query", args)
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return body, client.Close, nil
}

type logsTailCmd struct {
	logsSelect
	Lines int `short:"n" help:"End after so many lines." placeholder:"N"`
}

func (*logsTailCmd) Help() string {
	return "Lines come in the order in which they were received, half a second late, so that those of other nodes find their place.\n\nExamples:\n" +
		"  holdfast logs tail -p err\n" +
		"  holdfast logs tail -w fbcn[01-16] --since 10m --if 'app == \"slurmd\" && text contains \"OOM\"' -n 20"
}

func (c *logsTailCmd) Run(con *console) error {
	q, err := c.query("")
	if err != nil {
		return err
	}
	q.Follow = true
	return c.lines(con, q, c.Lines)
}

type logsGrepCmd struct {
	logsSelect
	Pattern string `arg:"" optional:"" help:"A regular expression (RE2) for the line as it stands in its file."`
	Lines   int    `short:"n" help:"Print the first lines only, so many." placeholder:"N"`
}

func (*logsGrepCmd) Help() string {
	return "It looks at what the journals still have (logs.replay_mib), the last hour unless --since says otherwise; what is older is in the files.\n\n" +
		"Examples:\n  holdfast logs grep 'Out of memory' -w @compute --since 2h\n  holdfast logs grep -p crit --since \"2026-11-25 12:00\" --json"
}

func (c *logsGrepCmd) Run(con *console) error {
	q, err := c.query("1h")
	if err != nil {
		return err
	}
	q.Text = c.Pattern
	return c.lines(con, q, c.Lines)
}

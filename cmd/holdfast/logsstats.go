package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"holdfast/logrelay"
)

// summaries are the counts of all relays. missing names those that gave none.
func (c *logsSelect) summaries(con *console, q logrelay.Query, by string) (list []logrelay.Summary, missing, err error) {
	args := q.Values()
	args.Set("by", by)
	missing, err = c.each(con, func(p relayPeer) error {
		return c.ask(con, p.server, http.MethodGet, "summary", args, func(r io.Reader) error {
			var s logrelay.Summary
			if err := json.NewDecoder(r).Decode(&s); err != nil {
				return err
			}
			list = append(list, s)
			return nil
		})
	})
	return list, missing, err
}

// logsRow is one of what lines are counted by.
type logsRow struct {
	Name string `json:"name"`
	*logrelay.Counts
}

// mostFirst sorts counts, and leaves so many rows; 0: all.
func mostFirst(sum map[string]*logrelay.Counts, most int) []logsRow {
	rows := make([]logsRow, 0, len(sum))
	for name, counts := range sum {
		rows = append(rows, logsRow{name, counts})
	}
	slices.SortFunc(rows, func(a, b logsRow) int {
		return cmp.Or(cmp.Compare(b.Lines, a.Lines), cmp.Compare(a.Name, b.Name))
	})
	if most > 0 && len(rows) > most {
		rows = rows[:most]
	}
	return rows
}

type logsStatsCmd struct {
	logsSelect
	By   string `default:"host" enum:"host,app,severity,input" help:"What lines are counted by: host, app, severity or input."`
	Rows int    `short:"n" help:"Show the first rows only, so many." placeholder:"N"`
}

func (*logsStatsCmd) Help() string {
	return "Of the last hour unless --since says otherwise. A line that is on two nodes counts once.\n\n" +
		"Examples:\n  holdfast logs stats\n  holdfast logs stats --by app -p err --since 1d -n 10"
}

func (c *logsStatsCmd) Run(con *console) error {
	q, err := c.query("1h")
	if err != nil {
		return err
	}
	list, missing, err := c.summaries(con, q, c.By)
	if err != nil {
		return err
	}
	rows := mostFirst(logrelay.Add(list), c.Rows)
	if c.JSON {
		err = con.json(rows)
	} else {
		err = con.statsTable(c.By, rows, 0)
	}
	return errors.Join(err, missing)
}

// statsTable prints counts; with a period, lines a second too.
func (c *console) statsTable(by string, rows []logsRow, period time.Duration) error {
	heading := []string{by, "LINES", "KIB", "ERR AND WORSE", "WARNING", "LAST"}
	if period > 0 {
		heading = append(heading, "A SECOND")
	}
	var table [][]string
	for _, r := range rows {
		bad := r.Severities[0] + r.Severities[1] + r.Severities[2] + r.Severities[3]
		row := []string{
			r.Name, strconv.FormatInt(r.Lines, 10), strconv.FormatInt((r.Bytes+1023)/1024, 10),
			strconv.FormatInt(bad, 10), strconv.FormatInt(r.Severities[4], 10), r.Last.Local().Format(time.DateTime),
		}
		if period > 0 {
			row = append(row, fmt.Sprintf("%.1f", float64(r.Lines)/period.Seconds()))
		}
		table = append(table, row)
	}
	return c.table(heading, table)
}

type logsTopCmd struct {
	logsSelect
	By    string        `default:"host" enum:"host,app,severity,input" help:"What lines are counted by: host, app, severity or input."`
	Rows  int           `short:"n" default:"20" help:"Rows." placeholder:"N"`
	Every time.Duration `default:"5s" help:"How often, and of how long." placeholder:"DURATION"`
	Once  bool          `help:"Show one such period, and end."`
}

func (*logsTopCmd) Help() string {
	return "Examples:\n  holdfast logs top\n  holdfast logs top --by app -w @compute --every 1m"
}

func (c *logsTopCmd) Run(con *console) error {
	if c.Every < time.Second || c.Every > time.Hour {
		return &exitError{exitUsage, fmt.Errorf("--every %v is out of range: 1s to 1h", c.Every)}
	}
	tick := time.NewTicker(c.Every)
	defer tick.Stop()
	for {
		q, err := c.query(c.Every.String())
		if err != nil {
			return err
		}
		list, missing, err := c.summaries(con, q, c.By)
		if con.ctx.Err() != nil {
			return nil // the admin has seen enough
		}
		if err != nil {
			return err
		}
		rows := mostFirst(logrelay.Add(list), c.Rows)
		if con.isTerm && !c.Once {
			fmt.Fprint(con.out, "\x1b[H\x1b[2J")
		}
		if c.JSON {
			err = con.json(rows)
		} else {
			err = con.statsTable(c.By, rows, c.Every)
		}
		if err != nil || c.Once {
			return errors.Join(err, missing)
		}
		if missing != nil {
			fmt.Fprintf(con.err, "holdfast: %v\n", missing)
		}
		select {
		case <-tick.C:
		case <-con.ctx.Done():
			return nil
		}
	}
}

type logsWhereCmd struct{ logsSelect }

func (*logsWhereCmd) Help() string {
	return "Of the last day unless --since says otherwise.\n\nExample: holdfast logs where -w fbcn[01-04]"
}

// logsPlace is where a host's lines are.
type logsPlace struct {
	Host  string    `json:"host"`
	Node  string    `json:"node"`           // the service node that has them
	From  string    `json:"from,omitempty"` // the one that took them, if that is another
	Lines int64     `json:"lines"`
	Last  time.Time `json:"last"`
}

func (c *logsWhereCmd) Run(con *console) error {
	q, err := c.query("24h")
	if err != nil {
		return err
	}
	list, missing, err := c.summaries(con, q, "host")
	if err != nil {
		return err
	}
	places := placesOf(list)
	if c.JSON {
		return errors.Join(con.json(places), missing)
	}
	var rows [][]string
	for _, p := range places {
		how := "from the host"
		if p.From != "" {
			how = "from " + p.From
		}
		rows = append(rows, []string{p.Host, p.Node, how, strconv.FormatInt(p.Lines, 10), p.Last.Local().Format(time.DateTime)})
	}
	return errors.Join(con.table([]string{"HOST", "NODE", "TAKEN", "LINES", "LAST"}, rows), missing)
}

// placesOf lists hosts, each with the nodes that have its lines.
func placesOf(list []logrelay.Summary) []logsPlace {
	places := []logsPlace{}
	for _, s := range list {
		for host, counts := range s.Own {
			places = append(places, logsPlace{host, s.Node, "", counts.Lines, counts.Last})
		}
		for _, from := range slices.Sorted(maps.Keys(s.Held)) {
			for host, counts := range s.Held[from] {
				places = append(places, logsPlace{host, s.Node, from, counts.Lines, counts.Last})
			}
		}
	}
	slices.SortFunc(places, func(a, b logsPlace) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.Node, b.Node), cmp.Compare(a.From, b.From))
	})
	return places
}

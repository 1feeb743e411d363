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

	"holdfast/internal/admin"
	"holdfast/logrelay"
)

type logsCmd struct {
	Status logsStatusCmd `cmd:"" help:"Show this node's log relay: the journal, what each output has yet to take, whether senders wait."`
	Tail   logsTailCmd   `cmd:"" help:"Print lines as they come in, the ones that fit."`
	Pause  logsPauseCmd  `cmd:"" help:"Read no more RELP and TCP: senders keep their lines."`
	Resume logsResumeCmd `cmd:"" help:"Read again."`
}

// logsSocket says which relay a command asks.
type logsSocket struct {
	Socket string `default:"/run/holdfast/logs.sock" env:"HOLDFAST_LOGS_SOCKET" help:"Admin socket of the log relay on this machine."`
}

// ask sends a request and gives the answer's body to f.
func (c logsSocket) ask(con *console, method, path string, f func(io.Reader) error) error {
	request, err := http.NewRequestWithContext(con.ctx, method, admin.BaseURL+path, nil)
	if err != nil {
		return err
	}
	client := admin.Client(c.Socket)
	defer client.CloseIdleConnections()
	answer, err := client.Do(request)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return &exitError{exitUnreachable, err}
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
		err := errors.New(strings.TrimSpace(string(text)))
		if answer.StatusCode == http.StatusBadRequest {
			return &exitError{exitUsage, err}
		}
		return err
	}
	return f(answer.Body)
}

type logsStatusCmd struct {
	logsSocket
	JSON bool `name:"json" help:"Print JSON."`
}

func (*logsStatusCmd) Help() string {
	return "Example: holdfast logs status\n\nExit status 6: senders are held back."
}

func (c *logsStatusCmd) Run(con *console) error {
	var status logrelay.Status
	err := c.ask(con, http.MethodGet, logrelay.StatusPath, func(r io.Reader) error { return status.Read(r) })
	if err != nil {
		return err
	}
	if c.JSON {
		if err := con.json(status); err != nil {
			return err
		}
	} else if err := c.print(con, status); err != nil {
		return err
	}
	if status.Held != "" {
		return &exitError{exitDegraded, errors.New(status.Held)}
	}
	return nil
}

func (c *logsStatusCmd) print(con *console, status logrelay.Status) error {
	fmt.Fprintf(con.out, "journal: %s, %.1f MiB, %d lines since it was made\n", status.Journal, float64(status.Bytes)/(1<<20), status.End)
	rows := make([][]string, 0, len(status.Outputs))
	for _, o := range status.Outputs {
		rows = append(rows, []string{o.Name, strconv.FormatUint(o.Next, 10), strconv.FormatUint(status.End-min(status.End, o.Next), 10)})
	}
	return con.table([]string{"OUTPUT", "NEXT", "WAITING"}, rows)
}

type logsTailCmd struct {
	logsSocket
	If    string        `name:"if" help:"Only lines that fit this condition; see logrelay/README.md." placeholder:"CONDITION"`
	Since time.Duration `help:"Begin with what the journal still has of so long ago." placeholder:"DURATION"`
	Lines int           `short:"n" help:"End after so many lines." placeholder:"N"`
}

func (*logsTailCmd) Help() string {
	return "Examples:\n" +
		"  holdfast logs tail --if 'severity <= 3'\n" +
		"  holdfast logs tail --since 10m --if 'app == \"slurmd\" && text contains \"OOM\"' -n 20"
}

func (c *logsTailCmd) Run(con *console) error {
	query := url.Values{"if": {c.If}, "since": {c.Since.String()}, "lines": {strconv.Itoa(c.Lines)}}
	err := c.ask(con, http.MethodGet, logrelay.TailPath+"?"+query.Encode(), func(r io.Reader) error {
		_, err := io.Copy(con.out, r)
		return err
	})
	if con.ctx.Err() != nil {
		return nil // the admin has seen enough
	}
	return err
}

type logsPauseCmd struct{ logsSocket }

func (c *logsPauseCmd) Run(con *console) error {
	return c.ask(con, http.MethodPost, logrelay.PausePath, func(io.Reader) error {
		_, err := fmt.Fprintln(con.out, "RELP and TCP are read no more; holdfast logs resume ends that")
		return err
	})
}

type logsResumeCmd struct{ logsSocket }

func (c *logsResumeCmd) Run(con *console) error {
	return c.ask(con, http.MethodPost, logrelay.ResumePath, func(io.Reader) error {
		_, err := fmt.Fprintln(con.out, "RELP and TCP are read")
		return err
	})
}

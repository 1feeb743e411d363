package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"holdfast/aptproxy"
)

type aptCmd struct {
	Status     aptStatusCmd     `cmd:"" help:"Mirrors, suites and the store of this node's package proxy."`
	Snapshots  aptSnapshotsCmd  `cmd:"" help:"List the generations of each suite that this node keeps."`
	Diff       aptDiffCmd       `cmd:"" help:"Tell which packages differ between two generations."`
	Freeze     aptFreezeCmd     `cmd:"" help:"Hold clients at the packages of now, or of a time, on every service node."`
	Thaw       aptThawCmd       `cmd:"" help:"Let the clients of a view go."`
	Views      aptViewsCmd      `cmd:"" help:"List what is frozen, and for whom."`
	Promote    aptPromoteCmd    `cmd:"" help:"Make a view hold what another one holds."`
	Rollback   aptRollbackCmd   `cmd:"" help:"Make a view hold what it held before its last change."`
	SigningKey aptSigningKeyCmd `cmd:"" name:"signing-key" help:"Make the key by which frozen suites are signed anew."`
	Origins    aptOriginsCmd    `cmd:"" help:"List the repositories: bytes, quota, and how their mirrors are."`
	Top        aptTopCmd        `cmd:"" help:"Tell which nodes, packages or repositories are asked for the most."`
	Warm       aptWarmCmd       `cmd:"" help:"Fetch packages before clients ask for them."`
	Import     aptImportCmd     `cmd:"" help:"Take over the files of a directory that a signature vouches for, such as an apt-cacher-ng cache."`
	Purge      aptPurgeCmd      `cmd:"" help:"Remove files from the store; they are fetched again when they are wanted."`
	Verify     aptVerifyCmd     `cmd:"" help:"Read and hash every file in the store; exit status 6 when one was damaged."`
	Who        aptWhoCmd        `cmd:"" help:"Tell which nodes fetched a package lately."`
	Detect     aptDetectCmd     `cmd:"" help:"Print the proxy that answers, or DIRECT: for Acquire::http::Proxy-Auto-Detect."`
}

// aptSocket asks the package proxy on this machine. It is embedded in every
// command that does.
type aptSocket struct {
	Socket string `default:"/run/holdfast/apt.sock" env:"HOLDFAST_APT_SOCKET" help:"Admin socket of the package proxy on this machine."`
	JSON   bool   `name:"json" help:"Print JSON."`
}

func (a *aptSocket) ask(ctx context.Context, method, path string, body, v any) error {
	return (&dnsSocket{Socket: a.Socket}).ask(ctx, method, path, body, v)
}

// short is how ids are printed.
func short(id string) string { return id[:min(12, len(id))] }

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

type aptStatusCmd struct{ aptSocket }

func (*aptStatusCmd) Help() string { return "Example: holdfast apt status" }

func (c *aptStatusCmd) Run(con *console) error {
	var st aptproxy.Status
	if err := c.ask(con.ctx, "GET", "/v1/apt/status", nil, &st); err != nil {
		return err
	}
	if c.JSON {
		return con.json(st)
	}
	fmt.Fprintf(con.out, "%d files, %s; %d evicted and %d found damaged since the start; %d downloads under way\n",
		st.Store.Blobs, bytesText(st.Store.Bytes), st.Store.Evicted, st.Store.Quarantined, st.Downloads)
	if st.Store.Full {
		fmt.Fprintln(con.out, con.paint(yellow, "the disk is full: packages are passed through uncached"))
	}
	var rows [][]string
	for _, m := range st.Mirrors {
		state := "works"
		if m.Failures > 0 {
			state = oneLine(m.Error, 60)
		}
		rows = append(rows, []string{m.Repository, m.URL, m.Latency.Round(100 * time.Microsecond).String(), strconv.Itoa(m.Failures), state})
	}
	if err := con.table([]string{"REPOSITORY", "MIRROR", "LATENCY", "FAILURES", "STATE"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, s := range st.Suites {
		state := "current"
		switch {
		case s.Trouble != "":
			state = oneLine(s.Trouble, 60)
		case s.Expired:
			state = "expired"
		}
		rows = append(rows, []string{s.Repository, s.Suite, short(s.Generation), date(s.Released), date(s.ValidUntil), date(s.Checked), state})
	}
	if err := con.table([]string{"REPOSITORY", "SUITE", "GENERATION", "RELEASED", "VALID UNTIL", "CHECKED", "STATE"}, rows); err != nil {
		return err
	}
	if st.Trouble != "" {
		return &exitError{exitDegraded, errors.New(st.Trouble)}
	}
	return nil
}

// bytesText writes a size for people.
func bytesText(n int64) string {
	for _, unit := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

type aptSnapshotsCmd struct{ aptSocket }

func (*aptSnapshotsCmd) Help() string { return "Example: holdfast apt snapshots" }

func (c *aptSnapshotsCmd) Run(con *console) error {
	var list []aptproxy.SnapshotReport
	if err := c.ask(con.ctx, "GET", "/v1/apt/snapshots", nil, &list); err != nil {
		return err
	}
	if c.JSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, g := range list {
		current := ""
		if g.Current {
			current = "current"
		}
		rows = append(rows, []string{g.Repository, g.Suite, short(g.Generation), date(g.Released), date(g.Published), current})
	}
	return con.table([]string{"REPOSITORY", "SUITE", "GENERATION", "RELEASED", "SERVED SINCE", ""}, rows)
}

type aptDiffCmd struct {
	aptSocket
	From string `arg:"" help:"A generation, or the beginning of its id."`
	To   string `arg:"" help:"Another one of the same suite."`
}

func (*aptDiffCmd) Help() string { return "Example: holdfast apt diff 8f0c21 3b77aa" }

func (c *aptDiffCmd) Run(con *console) error {
	var list []aptproxy.Change
	if err := c.ask(con.ctx, "POST", "/v1/apt/diff", aptproxy.DiffRequest{From: c.From, To: c.To}, &list); err != nil {
		return err
	}
	if c.JSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, p := range list {
		note := ""
		if p.Security {
			note = "security"
		}
		rows = append(rows, []string{p.Package, p.Arch, dash(p.From), dash(p.To), note})
	}
	return con.table([]string{"PACKAGE", "ARCHITECTURE", "FROM", "TO", ""}, rows)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

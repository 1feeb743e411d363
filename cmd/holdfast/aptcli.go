package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"holdfast/aptproxy"
)

type aptCmd struct {
	Status    aptStatusCmd    `cmd:"" help:"Mirrors, suites and the store of this node's package proxy."`
	Snapshots aptSnapshotsCmd `cmd:"" help:"List the generations of each suite that this node keeps."`
	Diff      aptDiffCmd      `cmd:"" help:"Tell which packages differ between two generations."`
	Freeze    aptFreezeCmd    `cmd:"" help:"Hold clients at the packages of now, or of a time, on every service node."`
	Thaw      aptThawCmd      `cmd:"" help:"Let the clients of a view go."`
	Views     aptViewsCmd     `cmd:"" help:"List what is frozen, and for whom."`
	Promote   aptPromoteCmd   `cmd:"" help:"Make a view hold what another one holds."`
	Verify    aptVerifyCmd    `cmd:"" help:"Read and hash every file in the store; exit status 6 when one was damaged."`
	Who       aptWhoCmd       `cmd:"" help:"Tell which nodes fetched a package lately."`
	Detect    aptDetectCmd    `cmd:"" help:"Print the proxy that answers, or DIRECT: for Acquire::http::Proxy-Auto-Detect."`
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
		rows = append(rows, []string{p.Package, p.Arch, dash(p.From), dash(p.To)})
	}
	return con.table([]string{"PACKAGE", "ARCHITECTURE", "FROM", "TO"}, rows)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

type aptFreezeCmd struct {
	aptSocket
	View  string `default:"all" help:"Name of the view, for thaw and promote." placeholder:"NAME"`
	Nodes string `help:"Nodes that are held; every client unless said." placeholder:"NODESET"`
	At    string `help:"Freeze what this node served then (2026-11-01 or 2026-11-01T12:00:00Z); now unless said." placeholder:"TIME"`
}

func (*aptFreezeCmd) Help() string {
	return "Examples:\n" +
		"  holdfast apt freeze                                # every client, as of now\n" +
		"  holdfast apt freeze --view test --nodes 'cn[1-4]' --at 2026-11-01\n\n" +
		"A frozen Release may run past its Valid-Until: clients then want [check-valid-until=no] in sources.list."
}

func (c *aptFreezeCmd) Run(con *console) error {
	request := aptproxy.FreezeRequest{View: c.View, Nodes: c.Nodes}
	if c.At != "" {
		at, err := time.Parse(time.RFC3339, c.At)
		if err != nil {
			if at, err = time.ParseInLocation(time.DateOnly, c.At, time.Local); err != nil {
				return &exitError{exitUsage, fmt.Errorf("--at %q is no time such as 2026-11-01 or 2026-11-01T12:00:00Z", c.At)}
			}
		}
		request.At = at
	}
	var list []aptproxy.FrozenReport
	if err := c.ask(con.ctx, "POST", "/v1/apt/freeze", request, &list); err != nil {
		return err
	}
	return printViews(con, list, c.JSON)
}

func printViews(con *console, list []aptproxy.FrozenReport, asJSON bool) error {
	if asJSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, v := range list {
		nodes := v.Nodes
		if nodes == "" {
			nodes = "every client"
		}
		rows = append(rows, []string{v.View, nodes, v.Repository, v.Suite, short(v.Generation), date(v.Released), date(v.Frozen), oneLine(v.Trouble, 70)})
	}
	return con.table([]string{"VIEW", "NODES", "REPOSITORY", "SUITE", "GENERATION", "RELEASED", "FROZEN", ""}, rows)
}

type aptViewsCmd struct{ aptSocket }

func (*aptViewsCmd) Help() string { return "Example: holdfast apt views" }

func (c *aptViewsCmd) Run(con *console) error {
	var list []aptproxy.FrozenReport
	if err := c.ask(con.ctx, "GET", "/v1/apt/views", nil, &list); err != nil {
		return err
	}
	return printViews(con, list, c.JSON)
}

type aptThawCmd struct {
	aptSocket
	View string `arg:"" optional:"" default:"all" help:"Name of the view."`
}

func (*aptThawCmd) Help() string { return "Example: holdfast apt thaw test" }

func (c *aptThawCmd) Run(con *console) error {
	var answer map[string]string
	if err := c.ask(con.ctx, "POST", "/v1/apt/thaw", aptproxy.FreezeRequest{View: c.View}, &answer); err != nil {
		return err
	}
	return con.done(c.JSON, "thawed "+c.View)
}

type aptPromoteCmd struct {
	aptSocket
	Nodes string `help:"Nodes of the second view; those that it has unless said." placeholder:"NODESET"`
	From  string `arg:"" help:"A view."`
	To    string `arg:"" help:"The view that is to hold the same."`
}

func (*aptPromoteCmd) Help() string { return "Example: holdfast apt promote test prod" }

func (c *aptPromoteCmd) Run(con *console) error {
	var answer map[string]string
	request := aptproxy.PromoteRequest{From: c.From, To: c.To, Nodes: c.Nodes}
	if err := c.ask(con.ctx, "POST", "/v1/apt/promote", request, &answer); err != nil {
		return err
	}
	return con.done(c.JSON, c.To+" holds what "+c.From+" holds")
}

type aptVerifyCmd struct {
	aptSocket
	Rate string `help:"Bytes read per second, such as 50M; as fast as the disk unless said." placeholder:"SIZE"`
}

func (*aptVerifyCmd) Help() string { return "Example: holdfast apt verify --rate 100M" }

func (c *aptVerifyCmd) Run(con *console) error {
	path := "/v1/apt/verify"
	if c.Rate != "" {
		rate, err := aptproxy.ParseSize(c.Rate)
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("--rate: %w", err)}
		}
		path += "?rate=" + strconv.FormatInt(rate, 10)
	}
	var report struct {
		Checked int           `json:"checked"`
		Bytes   int64         `json:"bytes"`
		Bad     []string      `json:"bad"`
		Took    time.Duration `json:"took_ns"`
	}
	if err := c.ask(con.ctx, "POST", path, nil, &report); err != nil {
		return err
	}
	if c.JSON {
		if err := con.json(report); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(con.out, "%d files, %s, read in %s\n", report.Checked, bytesText(report.Bytes), report.Took.Round(time.Millisecond)); err != nil {
		return err
	}
	if len(report.Bad) > 0 {
		return &exitError{exitDegraded, fmt.Errorf("%d were damaged and are in quarantine: %s", len(report.Bad), strings.Join(report.Bad, ", "))}
	}
	return nil
}

type aptWhoCmd struct {
	aptSocket
	Package string `arg:"" help:"NAME or NAME=VERSION."`
}

func (*aptWhoCmd) Help() string {
	return "Example: holdfast apt who openssl=3.0.11-1~deb12u2\n\nIt knows the last 100,000 requests that this node answered since its start."
}

func (c *aptWhoCmd) Run(con *console) error {
	name, version, exact := strings.Cut(c.Package, "=")
	prefix := name + "_"
	if exact {
		if _, after, ok := strings.Cut(version, ":"); ok { // a file's name has no epoch
			version = after
		}
		prefix += version + "_"
	}
	var list []aptproxy.Request
	if err := c.ask(con.ctx, "GET", "/v1/apt/who?file="+prefix, nil, &list); err != nil {
		return err
	}
	if c.JSON {
		return con.json(list)
	}
	rows := make([][]string, 0, len(list))
	for _, r := range list {
		rows = append(rows, []string{r.Node, date(r.At), r.Repository, r.Path})
	}
	return con.table([]string{"NODE", "AT", "REPOSITORY", "FILE"}, rows)
}

type aptDetectCmd struct {
	Proxy   string        `default:"apt.service.virtual:3142" env:"HOLDFAST_APT_PROXY" help:"The proxy to look for." placeholder:"HOST:PORT"`
	Timeout time.Duration `default:"300ms" help:"How long to wait for it."`
	URL     string        `arg:"" optional:"" help:"What apt is about to fetch; it says so, and it makes no difference."`
}

func (*aptDetectCmd) Help() string {
	return "On a client, in /etc/apt/apt.conf.d/01proxy:\n" +
		"  Acquire::http::Proxy-Auto-Detect \"/usr/bin/holdfast-apt-detect\";  # a script: exec holdfast apt detect \"$1\""
}

func (c *aptDetectCmd) Run(con *console) error {
	ctx, cancel := context.WithTimeout(con.ctx, c.Timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.Proxy)
	if err != nil {
		_, err = fmt.Fprintln(con.out, "DIRECT")
		return err
	}
	_ = conn.Close() // it answers
	_, err = fmt.Fprintf(con.out, "http://%s\n", c.Proxy)
	return err
}

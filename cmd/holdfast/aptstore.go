package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"holdfast/aptproxy"
)

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

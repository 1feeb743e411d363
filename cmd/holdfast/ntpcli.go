package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"holdfast/cluster"
	"holdfast/internal/ntp"
)

type ntpCmd struct {
	Status   ntpStatusCmd   `cmd:"" help:"Ask the cluster's time servers, or others, what a client sees."`
	Tracking ntpTrackingCmd `cmd:"" help:"How this node's clock stands, and what it is corrected by."`
	Sources  ntpSourcesCmd  `cmd:"" help:"The sources that this node's clock is kept by, and what became of them."`
	Clients  ntpClientsCmd  `cmd:"" help:"How far the clocks of this node's clients are off, as their requests tell."`
	Peers    ntpPeersCmd    `cmd:"" help:"How the other service nodes' clocks look from this one."`
	Orphan   ntpOrphanCmd   `cmd:"" help:"Whose time the cluster has: its sources', or, when they are gone, its leader's."`
	Step     ntpStepCmd     `cmd:"" help:"Allow this node's clock to be stepped once, however far it is off."`
}

type ntpStatusCmd struct {
	ClusterFile string        `name:"config" type:"path" default:"/etc/holdfast/cluster.yaml" env:"HOLDFAST_CONFIG" help:"The cluster file, for the nodes that serve the time."`
	Timeout     time.Duration `default:"1s" help:"How long to wait for an answer."`
	JSON        bool          `name:"json" help:"Print JSON."`
	Servers     []string      `arg:"" optional:"" help:"Servers to ask, HOST or HOST:PORT; those of the cluster file unless said."`
}

func (*ntpStatusCmd) Help() string {
	return "Examples:\n" +
		"  holdfast ntp status                       # every node whose role runs ntp\n" +
		"  holdfast ntp status 192.0.2.1 ntp.example.com\n\n" +
		"The servers are asked by NTP, as any client would; no agent is asked. OFFSET is how far a\n" +
		"server is ahead of this machine's clock, ±ERROR at most if the server tells the truth.\n" +
		"Exit status 6: one of them does not answer or is not synchronised."
}

// ntpTarget is a server to ask.
type ntpTarget struct {
	name    string
	address string // host:port
}

// ntpReport is what a server answered.
type ntpReport struct {
	Server         string        `json:"server"`
	Address        string        `json:"address"`
	Error          string        `json:"error,omitempty"` // no answer, or a refusal; the rest is unknown then
	Synchronised   bool          `json:"synchronised"`
	Leap           string        `json:"leap,omitempty"`
	Stratum        uint8         `json:"stratum"`
	Reference      string        `json:"reference,omitempty"`
	Offset         time.Duration `json:"offset_ns"`
	MaxError       time.Duration `json:"max_error_ns"` // of the offset
	Delay          time.Duration `json:"delay_ns"`
	RootDelay      time.Duration `json:"root_delay_ns"`
	RootDispersion time.Duration `json:"root_dispersion_ns"`
}

func (c *ntpStatusCmd) Run(con *console) error {
	targets, err := c.targets()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	reports := make([]ntpReport, len(targets))
	var group sync.WaitGroup
	for i, target := range targets {
		group.Go(func() { reports[i] = askNTP(con.ctx, target, c.Timeout) })
	}
	group.Wait()
	if err := c.print(con, reports); err != nil {
		return err
	}
	if bad := slices.IndexFunc(reports, func(r ntpReport) bool { return !r.Synchronised }); bad >= 0 {
		return &exitError{exitDegraded, fmt.Errorf("%s has no time to give", reports[bad].Server)}
	}
	return nil
}

func (c *ntpStatusCmd) targets() (list []ntpTarget, err error) {
	for _, server := range c.Servers {
		address := server
		if _, _, err := net.SplitHostPort(server); err != nil {
			address = net.JoinHostPort(server, strconv.Itoa(ntp.Port))
		}
		list = append(list, ntpTarget{server, address})
	}
	if len(list) > 0 {
		return list, nil
	}
	file, err := cluster.Load(c.ClusterFile, sections())
	if err != nil {
		return nil, err
	}
	for _, node := range file.Nodes {
		if slices.Contains(file.Role(node.Role).Run, "ntp") {
			at := netip.AddrPortFrom(node.Addresses[file.Main().Name], ntp.Port)
			list = append(list, ntpTarget{node.Name, at.String()})
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no node of %s serves the time: write ntp to run: of a role, or name servers", c.ClusterFile)
	}
	return list, nil
}

// askNTP asks a server once.
func askNTP(ctx context.Context, target ntpTarget, timeout time.Duration) ntpReport {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := ntpReport{Server: target.name, Address: target.address}
	a, err := ntp.Query(ctx, target.address)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		r.Error = fmt.Sprintf("no answer within %s", timeout)
		return r
	case err != nil:
		r.Error = err.Error()
		if op, ok := errors.AsType[*net.OpError](err); ok {
			r.Error = op.Err.Error() // who was asked stands beside it
		}
		return r
	}
	r.Synchronised, r.Leap, r.Stratum, r.Reference = a.Synchronised(), a.Leap.String(), a.Stratum, referenceText(a)
	r.RootDelay, r.RootDispersion = a.RootDelay.Duration(), a.RootDispersion.Duration()
	r.Offset, r.Delay = a.Offset, a.Delay
	r.MaxError = max(0, a.Delay)/2 + r.RootDelay/2 + r.RootDispersion
	return r
}

// referenceText writes the reference of a server: letters for stratum 0 and 1, else
// mostly the IPv4 address of the server above.
func referenceText(a ntp.Answer) string {
	if a.Stratum <= 1 {
		return a.ReferenceID.String()
	}
	return netip.AddrFrom4(a.ReferenceID).String()
}

func (c *ntpStatusCmd) print(con *console, reports []ntpReport) error {
	if c.JSON {
		return con.json(reports)
	}
	rows := make([][]string, 0, len(reports))
	for _, r := range reports {
		if r.Error != "" {
			rows = append(rows, []string{r.Server, r.Address, "-", "-", "-", "-", "-", "-", oneLine(r.Error, 60)})
			continue
		}
		state := "synchronised"
		if !r.Synchronised {
			state = "not synchronised"
		} else if r.Leap != ntp.LeapNone.String() {
			state += ", leap second: " + r.Leap
		}
		rows = append(rows, []string{
			r.Server, r.Address, strconv.Itoa(int(r.Stratum)), r.Reference,
			micro(r.Offset), "±" + micro(r.MaxError), micro(r.Delay), micro(r.RootDispersion), state,
		})
	}
	return con.table([]string{"SERVER", "ADDRESS", "STRATUM", "REFERENCE", "OFFSET", "ERROR", "DELAY", "ROOT DISPERSION", "STATE"}, rows)
}

// micro writes a duration to the microsecond.
func micro(d time.Duration) string { return d.Round(time.Microsecond).String() }

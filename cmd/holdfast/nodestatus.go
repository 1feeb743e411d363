package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/api"
	"holdfast/vrrp"
)

type nodeStatusCmd struct {
	Node string `arg:"" optional:"" help:"The node; this one unless said."`
	Core string `name:"socket" default:"/run/holdfast/core.sock" env:"HOLDFAST_SOCKET" help:"Admin socket of the agent on this machine."`
	Net  string `name:"net-socket" default:"/run/holdfast/net.sock" env:"HOLDFAST_NET_SOCKET" help:"Admin socket of its net unit."`
	JSON bool   `name:"json" help:"Print JSON."`
}

func (*nodeStatusCmd) Help() string {
	return "Examples:\n  holdfast node status\n  holdfast node status fbfront2\n\n" +
		"What the node does now, and of which services it has the last healthy instance. Virtual addresses and the load balancer\n" +
		"are what this machine's net unit knows of them. Exit status 6 while the node is drained, wholly or in part."
}

// duties is what a node does for the others, and what of it is taken from it.
type duties struct {
	Node        string   `json:"node"`
	Member      string   `json:"member"`      // liveness by the gossip; "" it is no member
	Maintenance string   `json:"maintenance"` // why its services are in no answer; "" they are
	Services    []string `json:"services"`    // that it has healthy instances of
	Last        []string `json:"last"`        // those of them that no other node has a healthy instance of
	Addresses   []string `json:"addresses"`   // virtual ones that it holds
	Yielded     []string `json:"yielded"`     // virtual ones that this node gave away until they are released
	Leads       bool     `json:"leads"`       // Raft
	LB          string   `json:"lb"`          // why nobody new is sent to it; "" it is not drained there
	Unknown     []string `json:"unknown"`     // what could not be asked, and why
}

func (d *duties) drained() bool { return d.Maintenance != "" || d.LB != "" || len(d.Yielded) > 0 }

func (c *nodeStatusCmd) Run(con *console) error {
	units := nodeUnits{Node: c.Node, Core: c.Core, Net: c.Net}
	var st api.Status
	err := units.core(func(client *api.Client) (err error) {
		st, err = client.Status(con.ctx)
		return err
	})
	if err != nil {
		return err
	}
	d, err := catalogDuties(&st, cmp.Or(c.Node, st.Node))
	if err != nil {
		return err
	}
	if views, err := units.vips(con.ctx); err == nil {
		d.addresses(views)
	} else {
		d.Unknown = append(d.Unknown, fmt.Sprintf("virtual addresses: %v", err))
	}
	if lb, err := units.lb().status(con); err == nil {
		if _, drained := lb.Drains[d.Node]; drained {
			_, d.LB = lb.Empty(d.Node)
		}
	} else if e, ok := errors.AsType[*exitError](err); !ok || e.status != exitNotFound { // nothing is balanced here
		d.Unknown = append(d.Unknown, fmt.Sprintf("load balancer: %v", err))
	}
	if c.JSON {
		err = con.json(d)
	} else {
		for _, row := range d.rows() {
			fmt.Fprintf(con.out, "%-17s %s\n", row[0], printable(row[1]))
		}
	}
	if err == nil && d.drained() {
		err = &exitError{exitDegraded, fmt.Errorf("%s is drained", d.Node)}
	}
	return err
}

// catalogDuties is what the catalog and Raft tell of a node's.
func catalogDuties(st *api.Status, node string) (*duties, error) {
	d := &duties{Node: node, Services: []string{}, Last: []string{}, Addresses: []string{}, Yielded: []string{}, Unknown: []string{}}
	d.Leads = st.Leader != nil && st.Leader.Name == node
	known := false
	for _, m := range st.Members {
		if m.Name == node {
			d.Member, known = string(m.Liveness), true
		}
	}
	for _, f := range st.Failing {
		if f.Node == node && f.ID == api.NodeMaintenance {
			d.Maintenance = fallback(f.Output, "no reason given")
		}
	}
	for _, s := range st.Services {
		known = known || slices.ContainsFunc(s.Instances, func(i api.InstanceStatus) bool { return i.Node == node })
		if here, _ := passing(s, node); here > 0 {
			d.Services = append(d.Services, s.Name)
		}
	}
	d.Last = append(d.Last, lastOf(st.Services, node, nil)...)
	if !known {
		return nil, &exitError{exitNotFound, fmt.Errorf("%s is no member, and has no service", node)}
	}
	return d, nil
}

func (d *duties) addresses(views []vrrp.View) {
	for i := range views {
		v := &views[i]
		if v.Holder == d.Node {
			d.Addresses = append(d.Addresses, v.Name)
		}
		if v.Node == d.Node && v.Mode == vrrp.ModeYielded {
			d.Yielded = append(d.Yielded, v.Name)
		}
	}
}

func (d *duties) rows() [][2]string {
	leads := "no"
	if d.Leads {
		leads = "yes"
	}
	rows := [][2]string{
		{"node", d.Node},
		{"member", fallback(d.Member, "no")},
		{"maintenance", fallback(d.Maintenance, "no")},
		{"services", dash(strings.Join(d.Services, ", "))},
		{"last instance of", dash(strings.Join(d.Last, ", "))},
		{"holds", dash(strings.Join(d.Addresses, ", "))},
		{"has given away", dash(strings.Join(d.Yielded, ", "))},
		{"leads", leads},
		{"load balancer", fallback(d.LB, "not drained")},
	}
	for _, text := range d.Unknown {
		rows = append(rows, [2]string{"not known", text})
	}
	return rows
}

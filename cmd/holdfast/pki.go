package main

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/internal/peer"
)

type pkiCmd struct {
	Init  pkiInitCmd  `cmd:"" help:"Make the cluster's certificate authority and gossip key."`
	Issue pkiIssueCmd `cmd:"" help:"Issue certificates to nodes of the cluster file, or to an admin."`

	Rotate pkiRotateCmd `cmd:"" help:"Go over to a new authority, without a restart."`
}

type pkiInitCmd struct {
	JSON    bool   `name:"json" help:"Print JSON."`
	Dir     string `required:"" help:"Where to make the authority. Keep it off the service nodes." placeholder:"DIR"`
	Cluster string `required:"" help:"Name of the cluster, as in the cluster file." placeholder:"NAME"`
}

func (*pkiInitCmd) Help() string {
	return "Example: holdfast pki init --dir /root/holdfast-ca --cluster foobar"
}

func (c *pkiInitCmd) Run(con *console) error {
	if err := peer.Init(c.Dir, c.Cluster); err != nil {
		return err
	}
	if c.JSON {
		return con.json(map[string]string{"cluster": c.Cluster, "dir": c.Dir})
	}
	_, err := fmt.Fprintf(con.out, "made the authority of cluster %s in %s\nkeep %s secret; next: holdfast pki issue --ca %s --config cluster.yaml --out DIR\n",
		c.Cluster, c.Dir, filepath.Join(c.Dir, "ca.key"), c.Dir)
	return err
}

// validity is a duration that may be given in days and years of 365 days, too.
type validity time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *validity) UnmarshalText(text []byte) error {
	said := string(text)
	for unit, length := range map[string]time.Duration{"d": 24 * time.Hour, "y": 365 * 24 * time.Hour} {
		number, has := strings.CutSuffix(said, unit)
		if !has {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n == 0 || n > uint64(math.MaxInt64/length) {
			return fmt.Errorf("%q: want a length of time such as 36h, 90d or 5y, at most 292y", said)
		}
		*v = validity(time.Duration(n) * length)
		return nil
	}
	d, err := time.ParseDuration(said)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q: want a length of time such as 36h, 90d or 5y", said)
	}
	*v = validity(d)
	return nil
}

type pkiIssueCmd struct {
	JSON     bool     `name:"json" help:"Print JSON."`
	CA       string   `required:"" name:"ca" help:"Directory of the authority (holdfast pki init)." placeholder:"DIR"`
	Config   string   `default:"/etc/holdfast/cluster.yaml" help:"The cluster file."`
	Out      string   `required:"" help:"A directory per node is made below it; its content belongs in the node's /etc/holdfast/pki." placeholder:"DIR"`
	Nodes    string   `help:"Node set; the servers unless said. Nodes whose role runs no agent get a certificate for TLS, such as for their log lines, without the gossip key." placeholder:"NODESET"`
	Admin    string   `help:"Issue a certificate to this admin instead, for the CLI over HTTPS." placeholder:"NAME"`
	Validity validity `default:"5y" help:"How long the certificates are valid, such as 36h, 90d or 5y."`
}

func (*pkiIssueCmd) Help() string {
	return "Examples:\n  holdfast pki issue --ca /root/holdfast-ca --config cluster.yaml --out /root/issued\n  holdfast pki issue --ca /root/holdfast-ca --config cluster.yaml --out /root/issued --admin alice"
}

func (c *pkiIssueCmd) Run(con *console) error {
	file, err := cluster.Load(c.Config, sections())
	if err != nil {
		return &exitError{exitUsage, err}
	}
	requests, err := c.requests(file)
	if err != nil {
		return err
	}
	type issued struct {
		Name string `json:"name"`
		Role string `json:"role"`
		Dir  string `json:"dir"`
	}
	all := make([]issued, 0, len(requests))
	rows := make([][]string, 0, len(requests))
	for _, r := range requests {
		dir := filepath.Join(c.Out, r.Identity.Name)
		if err := peer.Issue(c.CA, dir, r); err != nil {
			return err
		}
		all = append(all, issued{r.Identity.Name, string(r.Identity.Role), dir})
		rows = append(rows, []string{r.Identity.Name, string(r.Identity.Role), dir})
	}
	if c.JSON {
		return con.json(all)
	}
	return con.table([]string{"NAME", "ROLE", "DIRECTORY"}, rows)
}

func (c *pkiIssueCmd) requests(file *cluster.File) ([]peer.Request, error) {
	if c.Admin != "" {
		identity := peer.Identity{Cluster: file.Name, Name: c.Admin, Role: peer.RoleAdmin}
		return []peer.Request{{Identity: identity, Validity: time.Duration(c.Validity)}}, nil
	}
	wanted := map[string]bool{}
	if c.Nodes != "" {
		names, err := file.Expand(c.Nodes)
		if err != nil {
			return nil, &exitError{exitUsage, fmt.Errorf("--nodes: %w", err)}
		}
		for _, name := range names {
			if file.Node(name) == nil {
				return nil, &exitError{exitUsage, fmt.Errorf("--nodes: %s has no node %q", file.Path, name)}
			}
			wanted[name] = true
		}
	}
	var requests []peer.Request
	for _, node := range file.Nodes {
		// Others get theirs by name or by a token: with it goes the gossip key.
		if len(wanted) > 0 && !wanted[node.Name] || len(wanted) == 0 && file.Role(node.Role).Voters == 0 {
			continue
		}
		r := nodeRequest(file, node, time.Duration(c.Validity))
		r.Client = !file.Role(node.Role).Agent
		requests = append(requests, r)
	}
	return requests, nil
}

// nodeRole is what stands in a node's certificate.
func nodeRole(file *cluster.File, node *cluster.Node) peer.Role {
	if node != nil && file.Role(node.Role).Voters > 0 {
		return peer.RoleServer
	}
	return peer.RoleAgent
}

// nodeRequest asks for a certificate that holds for every name and address of
// the node.
func nodeRequest(file *cluster.File, node cluster.Node, validity time.Duration) peer.Request {
	identity := peer.Identity{Cluster: file.Name, Name: node.Name, Role: nodeRole(file, &node)}
	r := peer.Request{Identity: identity, Validity: validity}
	for _, network := range file.Networks {
		if addr, ok := node.Addresses[network.Name]; ok {
			r.IPs = append(r.IPs, addr)
		}
		if name, ok := node.Hostnames[network.Name]; ok {
			r.DNSNames = append(r.DNSNames, name)
			if file.Domain != "" {
				r.DNSNames = append(r.DNSNames, name+"."+file.Domain)
			}
		}
	}
	r.IPs = append(r.IPs, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback())
	return r
}

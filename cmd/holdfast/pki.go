package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"holdfast/cluster"
	"holdfast/internal/peer"
)

type pkiCmd struct {
	Init  pkiInitCmd  `cmd:"" help:"Make the cluster's certificate authority and gossip key."`
	Issue pkiIssueCmd `cmd:"" help:"Issue certificates to nodes of the cluster file, or to an admin."`
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

type pkiIssueCmd struct {
	JSON     bool          `name:"json" help:"Print JSON."`
	CA       string        `required:"" name:"ca" help:"Directory of the authority (holdfast pki init)." placeholder:"DIR"`
	Config   string        `default:"/etc/holdfast/cluster.yaml" help:"The cluster file."`
	Out      string        `required:"" help:"A directory per node is made below it; its content belongs in the node's /etc/holdfast/pki." placeholder:"DIR"`
	Nodes    string        `help:"Node set; every node that runs an agent unless said." placeholder:"NODESET"`
	Admin    string        `help:"Issue a certificate to this admin instead, for the CLI over HTTPS." placeholder:"NAME"`
	Validity time.Duration `default:"43800h" help:"How long the certificates are valid (5 years unless said)."`
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
		return []peer.Request{{Identity: identity, Validity: c.Validity}}, nil
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
		role := file.Role(node.Role)
		if len(wanted) > 0 && !wanted[node.Name] || len(wanted) == 0 && !role.Agent {
			continue
		}
		requests = append(requests, nodeRequest(file, node, c.Validity))
	}
	return requests, nil
}

// nodeRequest asks for a certificate that holds for every name and address of
// the node.
func nodeRequest(file *cluster.File, node cluster.Node, validity time.Duration) peer.Request {
	identity := peer.Identity{Cluster: file.Name, Name: node.Name, Role: peer.RoleAgent}
	if file.Role(node.Role).Voters > 0 {
		identity.Role = peer.RoleServer
	}
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

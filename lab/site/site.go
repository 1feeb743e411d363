// Package site puts the service nodes of a cluster file on hosts of the lab:
// the real binary with real certificates, on the addresses of the file, with
// small servers behind the services it checks, and a client whose resolver is
// the cluster. The demo and the destructive tests stand on it.
package site

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"holdfast/cluster"
	"holdfast/lab"
)

// Options say what to put on the lab.
type Options struct {
	Binary    string   // the holdfast program, on the machine
	File      string   // the cluster file, on the machine
	Networks  []string // of the file that the lab has; the main one unless said
	AgentArgs []string // more arguments for every agent
	Followers []string // nodes of the file that are no servers and get a host, too
	Expose    []string // more files of the machine that the hosts need
	// Lab makes the lab; lab.New unless said. A test passes lab.NewTest.
	Lab func(lab.Options) (*lab.Lab, error)
}

// Site is a cluster in the lab.
type Site struct {
	Lab    *lab.Lab
	File   *cluster.File
	Nodes  []*Node // the servers, in the order of the file
	Client *lab.Host
	// Followers are the nodes that Options names.
	Followers []*Node

	options Options
	issued  string // certificates, a directory a node
	admin   string // the admin's
}

// New makes the hosts, the certificates and the client. No agent is started.
// Close it.
func New(ctx context.Context, o Options) (*Site, error) {
	// Sections of services are for the program to check, not for us.
	file, err := cluster.Load(o.File, map[string]cluster.SectionValidator{"api": nil, "dns": nil, "ntp": nil, "raft": nil, "vrrp": nil, "vips": nil})
	if err != nil {
		return nil, err
	}
	if len(o.Networks) == 0 {
		o.Networks = []string{file.Main().Name}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if o.Lab == nil {
		o.Lab = lab.New
	}
	l, err := o.Lab(lab.Options{Networks: o.Networks, Expose: append(o.Expose, o.Binary, self)})
	if err != nil {
		return nil, err
	}
	s := &Site{Lab: l, File: file, options: o}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Binary is the program's path, the same on the machine and on the hosts.
func (s *Site) Binary() string { return s.options.Binary }

// Close ends every host.
func (s *Site) Close() error { return s.Lab.Close() }

func (s *Site) build(ctx context.Context) error {
	servers := s.File.Servers()
	count := len(servers)
	for _, name := range s.options.Followers {
		node := s.File.Node(name)
		if node == nil {
			return fmt.Errorf("site: the cluster file has no node %q", name)
		}
		servers = append(servers, *node)
	}
	s.Nodes = make([]*Node, len(servers))
	failed := make([]error, len(servers)+1)
	var wg sync.WaitGroup
	for i, node := range servers {
		wg.Go(func() {
			host, err := s.Lab.AddHost(node.Name, s.nics(node)...)
			s.Nodes[i], failed[i] = &Node{Host: host, site: s, spec: node}, err
		})
	}
	wg.Go(func() {
		main := s.File.Main()
		var err error
		s.Client, err = s.Lab.AddHost("client", lab.On(main.Name, netip.PrefixFrom(lastAddr(main.Prefix), main.Prefix.Bits()).String()))
		failed[len(servers)] = err
	})
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if err := s.certify(ctx); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := n.install(); err != nil {
			return err
		}
	}
	s.Nodes, s.Followers = s.Nodes[:count:count], s.Nodes[count:]
	return s.Resolve(s.Client, s.Nodes[:min(2, len(s.Nodes))]...)
}

func (s *Site) nics(node cluster.Node) []lab.NIC {
	var nics []lab.NIC
	for _, name := range s.options.Networks {
		if addr, ok := node.Addresses[name]; ok {
			nics = append(nics, lab.On(name, netip.PrefixFrom(addr, s.File.Network(name).Prefix.Bits()).String()))
		}
	}
	return nics
}

// certify makes the site's certificates, and an admin's.
func (s *Site) certify(ctx context.Context) (err error) {
	if s.issued, err = Certify(ctx, s.options.Binary, s.options.File, s.File.Name, s.Lab.Dir()); err != nil {
		return err
	}
	s.admin = filepath.Join(s.issued, admin)
	if len(s.options.Followers) == 0 {
		return nil
	}
	_, err = exec.CommandContext(ctx, s.options.Binary, "pki", "issue", "--ca", s.Authority(), "--config", s.options.File,
		"--out", s.issued, "--nodes", strings.Join(s.options.Followers, ",")).Output()
	return err
}

// Authority is the directory of the site's certificate authority.
func (s *Site) Authority() string { return filepath.Join(s.Lab.Dir(), "ca") }

// admin is who has an admin's certificate.
const admin = "alice"

// Certify makes an authority and every node's certificate below dir, with the
// program's own commands as an admin would, and returns the directory that
// holds a directory a node.
func Certify(ctx context.Context, binary, file, clusterName, dir string) (string, error) {
	authority, issued := filepath.Join(dir, "ca"), filepath.Join(dir, "issued")
	for _, args := range [][]string{
		{"pki", "init", "--dir", authority, "--cluster", clusterName},
		{"pki", "issue", "--ca", authority, "--config", file, "--out", issued},
		{"pki", "issue", "--ca", authority, "--config", file, "--out", issued, "--admin", admin},
	} {
		if out, err := exec.CommandContext(ctx, binary, args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("site: holdfast %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return issued, nil
}

// Resolve points a host's resolver at nodes, the way the reference cluster
// configures its clients.
func (s *Site) Resolve(host *lab.Host, nodes ...*Node) error {
	var b strings.Builder
	fmt.Fprintf(&b, "search %s\noptions timeout:1 rotate\n", s.File.Domain)
	for _, n := range nodes {
		fmt.Fprintf(&b, "nameserver %s\n", n.Addr())
	}
	return host.Write("/etc/resolv.conf", []byte(b.String()))
}

// Node finds a node by its name; nil when absent.
func (s *Site) Node(name string) *Node {
	for _, n := range s.Nodes {
		if n.Name() == name {
			return n
		}
	}
	return nil
}

// Start starts the services and the agent of every node.
func (s *Site) Start(ctx context.Context) error {
	for _, n := range s.Nodes {
		if err := n.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// PowerOffAll takes the power of all nodes at one moment.
func (s *Site) PowerOffAll() error {
	hosts := make([]*lab.Host, len(s.Nodes))
	for i, n := range s.Nodes {
		hosts[i] = n.Host
	}
	return lab.PowerOff(hosts...)
}

// InstallAdmin gives a host the admin's certificate, in /etc/holdfast/pki.
func (s *Site) InstallAdmin(host *lab.Host) error {
	return copyInto(host, s.admin, "/etc/holdfast/pki")
}

// lastAddr is the last usable address of a prefix: the client's.
func lastAddr(p netip.Prefix) netip.Addr {
	addr := p.Addr()
	for next := addr; p.Contains(next.Next()); next = next.Next() {
		addr = next
	}
	return addr
}

// copyInto copies a directory's files, modes too, to a directory of a host's
// disk.
func copyInto(host *lab.Host, from, to string) error {
	target := filepath.Join(host.Disk(), to)
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(target, e.Name()), data, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// CopyAuthority gives a host the authority of the site, as an admin's machine
// has it.
func (s *Site) CopyAuthority(host *lab.Host, dir string) error {
	return copyInto(host, filepath.Join(s.Lab.Dir(), "ca"), dir)
}

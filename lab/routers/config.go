package routers

import (
	"bytes"
	"fmt"
	"net/netip"

	"holdfast/lab/keepalived"
)

// clusterFile is where a member that runs Holdfast has its configuration.
const clusterFile = "/etc/holdfast/cluster.yaml"

// secretFile has the password of version 2.
const secretFile = "/etc/holdfast/vrrp-password"

// runDir has the agent's sockets and its journal.
const runDir = "/run/holdfast"

// vipName is the name of a router in the cluster file.
func vipName(router int) string { return fmt.Sprintf("vr%d", VRID(router)) }

func (m *Member) keepalivedConfig() keepalived.Config {
	o := m.Options
	var c keepalived.Config
	for i := range o.Routers {
		vip := o.VIP(i)
		instance := keepalived.Instance{
			Version: o.Version, VRID: VRID(i), Priority: o.Priorities[m.index], Interval: o.Interval,
			Password: o.Password, NoPreempt: o.NoPreempt,
			Addresses: []netip.Prefix{netip.PrefixFrom(vip, vip.BitLen())},
		}
		for _, addr := range o.more() {
			instance.Addresses = append(instance.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
		}
		if o.Unicast {
			instance.Source = o.Addr(m.index)
			for k := range o.Members {
				if k != m.index {
					instance.Peers = append(instance.Peers, o.Addr(k))
				}
			}
		}
		c.Instances = append(c.Instances, instance)
	}
	return c
}

// agent is the command line of Holdfast.
func (m *Member) agent() []string {
	return []string{m.Options.Binary, "agent", "--only", "net", "--config", clusterFile, "--node", m.Host.String(), "--run-dir", runDir}
}

// clusterFile is the file that has all members as nodes, whatever they run.
func (m *Member) clusterFile() []byte {
	o := m.Options
	var b bytes.Buffer
	prefix := "10.1.0.0/16"
	if o.IPv6 {
		prefix = "fd00::/64"
	}
	fmt.Fprintf(&b, "schema: 1\ncluster: lab\ndomain: lab.example.com\n")
	fmt.Fprintf(&b, "networks:\n  adm: {prefix: \"%s\"}\n", prefix)
	fmt.Fprintf(&b, "roles:\n  service: {voters: 1, run: []}\n")
	fmt.Fprintf(&b, "nodes:\n")
	for i := range o.Members {
		fmt.Fprintf(&b, "  router%d: {role: service, addresses: {adm: \"%s\"}}\n", i+1, o.Addr(i))
	}
	fmt.Fprintf(&b, "vips:\n")
	for i := range o.Routers {
		fmt.Fprintf(&b, "  %s:\n    network: adm\n    address: \"%s\"\n    vrid: %d\n    members: \"@service\"\n", vipName(i), o.VIP(i), VRID(i))
		fmt.Fprintf(&b, "    version: %d\n    advertise: %s\n", o.Version, o.Interval)
		fmt.Fprintf(&b, "    vrrp:\n")
		fmt.Fprintf(&b, "      priority: {")
		for k, p := range o.Priorities {
			if k > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "router%d: %d", k+1, p)
		}
		b.WriteString("}\n")
		if more := o.more(); len(more) > 0 {
			b.WriteString("      addresses:\n")
			for _, addr := range more {
				fmt.Fprintf(&b, "        - \"%s\"\n", addr)
			}
		}
		if o.Unicast {
			b.WriteString("      unicast: true\n")
			if o.IPv6 {
				b.WriteString("      min_ttl: 64\n") // what keepalived sends
			}
		}
		if o.NoPreempt {
			b.WriteString("      preempt: false\n")
		}
		if o.Password != "" {
			fmt.Fprintf(&b, "      auth: {file: %s}\n", secretFile)
		}
	}
	return b.Bytes()
}

// more are the addresses that a router has beside its VIP.
func (o Options) more() []netip.Addr {
	var list []netip.Addr
	for i := range o.More {
		if o.IPv6 {
			list = append(list, netip.MustParseAddr(fmt.Sprintf("fd00::2:%x", i+1)))
			continue
		}
		list = append(list, netip.AddrFrom4([4]byte{10, 1, 2, byte(i + 1)}))
	}
	return list
}

// Package keepalived runs Debian's keepalived on hosts of the lab, as the peer
// that Holdfast must agree with and the incumbent that it is measured against.
package keepalived

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Instance is a virtual router (vrrp_instance of keepalived.conf(5)).
type Instance struct {
	Name         string        // default vrVRID
	Interface    string        // default eth0
	Version      int           // 2 or 3
	VRID         int           // 1–255
	Priority     int           // 1–255
	Interval     time.Duration // version 2: whole seconds
	Password     string        // version 2: auth_type PASS; "": none
	Source       netip.Addr    // of the adverts; zero: keepalived's choice
	Peers        []netip.Addr  // unicast; none: multicast
	NoPreempt    bool
	PreemptDelay time.Duration
	Addresses    []netip.Prefix // one family
	Excluded     []netip.Prefix // held, not advertised
	Extra        []string       // more lines
}

// Config is a keepalived.conf.
type Config struct {
	Global    []string // lines of global_defs
	Instances []Instance
}

// String is the file.
func (c Config) String() string {
	var b strings.Builder
	block := func(indent, head string, lines ...string) {
		fmt.Fprintf(&b, "%s%s {\n", indent, head)
		for _, l := range lines {
			fmt.Fprintf(&b, "%s    %s\n", indent, l)
		}
		fmt.Fprintf(&b, "%s}\n", indent)
	}
	block("", "global_defs", c.Global...)
	for _, i := range c.Instances {
		fmt.Fprintf(&b, "vrrp_instance %s {\n", cmp.Or(i.Name, fmt.Sprintf("vr%d", i.VRID)))
		for _, l := range i.lines() {
			fmt.Fprintf(&b, "    %s\n", l)
		}
		if i.Password != "" {
			block("    ", "authentication", "auth_type PASS", "auth_pass "+i.Password)
		}
		if len(i.Peers) > 0 {
			block("    ", "unicast_peer", texts(i.Peers)...)
		}
		block("    ", "virtual_ipaddress", texts(i.Addresses)...)
		if len(i.Excluded) > 0 {
			block("    ", "virtual_ipaddress_excluded", texts(i.Excluded)...)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func (i Instance) lines() []string {
	lines := []string{
		"state BACKUP",
		"interface " + cmp.Or(i.Interface, "eth0"),
		fmt.Sprintf("virtual_router_id %d", i.VRID),
		fmt.Sprintf("version %d", i.Version),
		fmt.Sprintf("priority %d", i.Priority),
		"advert_int " + seconds(i.Interval),
	}
	if i.Source.IsValid() {
		kind := "mcast_src_ip "
		if len(i.Peers) > 0 {
			kind = "unicast_src_ip "
		}
		lines = append(lines, kind+i.Source.String())
	}
	if i.NoPreempt {
		lines = append(lines, "nopreempt")
	}
	if i.PreemptDelay > 0 {
		lines = append(lines, "preempt_delay "+seconds(i.PreemptDelay))
	}
	return append(lines, i.Extra...)
}

// seconds writes a duration as keepalived reads it: without an exponent.
func seconds(d time.Duration) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.6f", d.Seconds()), "0"), ".")
}

func texts[T fmt.Stringer](values []T) []string {
	lines := make([]string, len(values))
	for i, v := range values {
		lines[i] = v.String()
	}
	return lines
}

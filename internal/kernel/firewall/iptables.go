package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// jump is from a chain of the table's own to one of ours, in its first place.
type jump struct{ table, from, to string }

// jumps are all of them. The chains' names are the same in both families.
func jumps() []jump {
	return []jump{
		{"raw", "PREROUTING", "HOLDFAST-PRE"}, {"raw", "OUTPUT", "HOLDFAST-OUT"},
		{"filter", "INPUT", "HOLDFAST-IN"}, {"filter", "OUTPUT", "HOLDFAST-OUT"},
	}
}

// ipTables stands beside what a site runs with iptables: Shorewall, scripts.
// go-iptables tells what is there; one iptables-restore a family changes it,
// each table in one step.
type ipTables struct {
	restore Restore
	no6     bool // nothing of ours is in IPv6's tables, and nothing was since
}

func restorer(ipv6 bool) string {
	if ipv6 {
		return "ip6tables-restore"
	}
	return "iptables-restore"
}

// Set looks at both families, at IPv6 without rules only once.
func (f *ipTables) Set(r Rules) (changes []string, err error) {
	var errs []error
	for _, ipv6 := range []bool{false, true} {
		part := r.family(ipv6)
		changed, err := f.setFamily(part, ipv6)
		errs = append(errs, err)
		if changed {
			changes = append(changes, fmt.Sprintf("%s: %d services untracked and let through", restorer(ipv6), len(part.Untracked)))
		}
	}
	return changes, errors.Join(errs...)
}

func (f *ipTables) setFamily(r Rules, ipv6 bool) (changed bool, err error) {
	protocol := iptables.ProtocolIPv4
	if ipv6 {
		protocol = iptables.ProtocolIPv6
	}
	tables, err := iptables.NewWithProtocol(protocol)
	if err != nil {
		if ipv6 && r.empty() {
			return false, nil
		}
		return false, join("iptables", err)
	}
	if ipv6 && r.empty() && f.no6 {
		return false, nil
	}
	absent, same, err := lookTwice(tables, r, ipv6)
	f.no6 = f.no6 || ipv6 && r.empty() && same
	if err != nil || same {
		return false, join("look at the tables", err)
	}
	f.no6 = f.no6 && !ipv6
	text := restoreText(r, ipv6, absent)
	if r.empty() {
		text = removalText(absent)
	}
	return true, join(restorer(ipv6), f.restore(restorer(ipv6), []string{"--noflush", "--wait", "5"}, text))
}

// lookTwice looks again when that fails: another program, a restart of Shorewall
// say, may have thrown a chain away between two questions about it.
func lookTwice(tables *iptables.IPTables, r Rules, ipv6 bool) (absent map[jump]bool, same bool, err error) {
	if absent, same, err = look(tables, r, ipv6); err != nil {
		absent, same, err = look(tables, r, ipv6)
	}
	return absent, same, err
}

// look tells which jumps are not there, and whether everything is as it should
// be. Of no rules, absent has only those whose chains are there.
func look(tables *iptables.IPTables, r Rules, ipv6 bool) (absent map[jump]bool, same bool, err error) {
	absent, same = map[jump]bool{}, true
	chains := map[string][]string{} // iptables-nft has strange words for one that is not there
	for _, table := range []string{"raw", "filter"} {
		if chains[table], err = tables.ListChains(table); err != nil {
			return nil, false, err
		}
	}
	for _, j := range jumps() {
		have, there := 0, slices.Contains(chains[j.table], j.to)
		switch {
		case there:
			if have, err = marked(tables, j, r.mark()); err != nil {
				return nil, false, err
			}
		case r.empty():
			continue
		}
		from, err := tables.List(j.table, j.from)
		if err != nil {
			return nil, false, err
		}
		absent[j] = !slices.Contains(from, fmt.Sprintf("-A %s -j %s", j.from, j.to))
		same = same && !r.empty() && !absent[j] && have == len(chainRules(r, ipv6, j))
	}
	return absent, same, nil
}

// marked counts the rules of a chain of ours that carry a mark; -1 when it has
// others too.
func marked(tables *iptables.IPTables, j jump, mark string) (n int, err error) {
	rules, err := tables.List(j.table, j.to)
	if err != nil {
		return 0, err
	}
	for _, rule := range rules {
		switch {
		case strings.HasPrefix(rule, "-N"):
		case strings.Contains(rule, mark):
			n++
		default:
			return -1, nil
		}
	}
	return n, nil
}

// restoreText makes our chains, whole, and the jumps that are absent; nil: all.
func restoreText(r Rules, ipv6 bool, absent map[jump]bool) string {
	var b strings.Builder
	for _, table := range []string{"raw", "filter"} {
		fmt.Fprintf(&b, "*%s\n", table)
		for _, j := range jumps() {
			if j.table == table {
				fmt.Fprintf(&b, ":%s - [0:0]\n", j.to) // made, or emptied
			}
		}
		for _, j := range jumps() {
			if j.table != table {
				continue
			}
			for _, rule := range chainRules(r, ipv6, j) {
				fmt.Fprintf(&b, "-A %s -m comment --comment %s %s\n", j.to, r.mark(), rule)
			}
			if absent == nil || absent[j] {
				fmt.Fprintf(&b, "-I %s 1 -j %s\n", j.from, j.to)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// removalText removes our chains. absent has those that are there, and whether
// nothing jumps to them.
func removalText(absent map[jump]bool) string {
	var b strings.Builder
	for _, table := range []string{"raw", "filter"} {
		fmt.Fprintf(&b, "*%s\n", table)
		for _, j := range jumps() {
			notJumped, there := absent[j]
			if j.table != table || !there {
				continue
			}
			if !notJumped {
				fmt.Fprintf(&b, "-D %s -j %s\n", j.from, j.to)
			}
			fmt.Fprintf(&b, "-F %s\n-X %s\n", j.to, j.to)
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// chainRules are the rules of one chain of ours, without chain and comment.
func chainRules(r Rules, ipv6 bool, j jump) (rules []string) {
	add := func(format string, args ...any) { rules = append(rules, fmt.Sprintf(format, args...)) }
	for _, e := range r.Untracked {
		addr, port := e.Addr.Addr(), e.Addr.Port()
		switch j {
		case jump{"raw", "PREROUTING", "HOLDFAST-PRE"}:
			add("-d %v -p %v --dport %d -j CT --notrack", addr, e.Protocol, port)
		case jump{"raw", "OUTPUT", "HOLDFAST-OUT"}:
			add("-s %v -p %v --sport %d -j CT --notrack", addr, e.Protocol, port)
		case jump{"filter", "INPUT", "HOLDFAST-IN"}:
			add("-d %v -p %v --dport %d -m conntrack --ctstate UNTRACKED -j ACCEPT", addr, e.Protocol, port)
		case jump{"filter", "OUTPUT", "HOLDFAST-OUT"}:
			if e.Protocol == TCP {
				add("-s %v -p tcp --sport %d --tcp-flags SYN,ACK,FIN,RST SYN -j DROP", addr, port)
			}
			add("-s %v -p %v --sport %d -m conntrack --ctstate UNTRACKED -j ACCEPT", addr, e.Protocol, port)
		}
	}
	if j.table != "filter" {
		return rules
	}
	in := j.from == "INPUT"
	if r.Sync {
		add("-d %v -p udp --dport %d -j ACCEPT", syncTo().Addr(), syncTo().Port())
	}
	for _, network := range r.VRRP {
		if in {
			add("-s %v -p 112 -j ACCEPT", network)
			continue
		}
		add("-d %v -p 112 -j ACCEPT", network)
		add("-d %v -p 112 -j ACCEPT", group(ipv6))
	}
	for _, e := range r.Probed {
		for _, d := range r.Directors {
			if in {
				add("-s %v -d %v -p %v --dport %d -j ACCEPT", d, e.Addr.Addr(), e.Protocol, e.Addr.Port())
				add("-s %v -d %v -p %v --sport %d -m conntrack --ctstate ESTABLISHED -j ACCEPT", e.Addr.Addr(), d, e.Protocol, e.Addr.Port())
				continue
			}
			add("-s %v -d %v -p %v --dport %d -j ACCEPT", d, e.Addr.Addr(), e.Protocol, e.Addr.Port())
			add("-s %v -d %v -p %v --sport %d -m conntrack --ctstate ESTABLISHED -j ACCEPT", e.Addr.Addr(), d, e.Protocol, e.Addr.Port())
		}
	}
	return rules
}

// group is where adverts go that are not unicast (RFC 9568 §5.1.1.2, §5.1.2.2).
func group(ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x12})
	}
	return netip.AddrFrom4([4]byte{224, 0, 0, 18})
}

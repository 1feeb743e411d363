// Package firewall declares the few rules that load balancing by direct routing
// needs, in chains or a table of our own, and leaves everything else alone.
//
// Why rules are needed at all: with net.ipv4.vs.conntrack=0, its default, IPVS
// takes each packet that it directs out of connection tracking
// (ip_vs_send_or_cont calls ip_vs_notrack), also one that it delivers on the
// director itself. The SYN of a client is then unknown to conntrack, and the
// director's own SYN/ACK belongs to no connection: it is INVALID, and most
// firewalls drop that. So the address's port is left untracked in both
// directions, which every real server may do alike, and what is untracked is
// let through; a connection that begins at the address's port is not a
// server's, and is refused.
package firewall

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// Protocol is the number of a transport in the IP header.
type Protocol uint8

// The transports that are balanced.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// Endpoint is an address and port.
type Endpoint struct {
	Protocol Protocol
	Addr     netip.AddrPort
}

// Rules are what is to be let through, or left alone. The zero value is none.
type Rules struct {
	// Untracked are the virtual services that this node serves or directs.
	Untracked []Endpoint
	// VRRP are the networks on which routers advertise to each other.
	VRRP []netip.Prefix
	// Probed are the real servers' own addresses, which directors check.
	Probed []Endpoint
	// Directors are who checks them.
	Directors []netip.Addr
	// Sync: this node's kernel tells other directors its connections, and hears
	// theirs.
	Sync bool
}

func (r Rules) empty() bool { return len(r.Untracked)+len(r.VRRP)+len(r.Probed) == 0 && !r.Sync }

// syncTo is where the kernel's daemons send connections unless they are told
// another group: of IPv6, too (net/netfilter/ipvs/ip_vs_sync.c). It is not
// routed. Their source is the first address of the interface, whichever network
// that is of, so rules say nothing of it.
func syncTo() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 81}), 8848)
}

// Mode is what a site's firewall is made with.
type Mode string

// The modes.
const (
	Off      Mode = "off"
	NFTables Mode = "nftables"
	IPTables Mode = "iptables" // of either kind, legacy or nf_tables
)

// Modes lists them.
func Modes() []string { return []string{string(Off), string(NFTables), string(IPTables)} }

// Firewall makes rules so. Its methods are not for several goroutines at once.
type Firewall interface {
	// Set makes these the rules, each family or table in one step, when they
	// are not there already; it tells what it did. No rules: nothing of ours
	// is left.
	Set(Rules) (changes []string, err error)
}

// Restore feeds a program that replaces tables, such as iptables-restore.
type Restore func(program string, args []string, input string) error

// Open opens a site's firewall, in the network namespace of the process for
// iptables, of the calling thread for nftables. Restore is for iptables.
func Open(m Mode, restore Restore) (Firewall, error) {
	switch m {
	case NFTables:
		return openNFT()
	case IPTables:
		return &ipTables{restore: restore}, nil
	case Off:
		return nothing{}, nil
	}
	return nil, fmt.Errorf("firewall: %q is not known; %s are", m, strings.Join(Modes(), ", "))
}

// nothing is a firewall that others manage.
type nothing struct{}

func (nothing) Set(Rules) ([]string, error) { return nil, nil }

// Text is what a person would load to have the rules, where they are managed
// elsewhere: for `nft -f`, or for `iptables-restore --noflush` (and
// ip6tables-restore).
func Text(m Mode, r Rules) (string, error) {
	switch m {
	case NFTables:
		return nftText(r), nil
	case IPTables, Off:
		var b strings.Builder
		for _, ipv6 := range []bool{false, true} {
			if part := r.family(ipv6); !part.empty() {
				fmt.Fprintf(&b, "# %s --noflush\n%s", restorer(ipv6), restoreText(part, ipv6, nil))
			}
		}
		return b.String(), nil
	}
	return "", fmt.Errorf("firewall: %q is not known; %s are", m, strings.Join(Modes(), ", "))
}

// family is the part of the rules that is of one family.
func (r Rules) family(ipv6 bool) (part Rules) {
	other := func(a netip.Addr) bool { return a.Is6() != ipv6 }
	endpoint := func(e Endpoint) bool { return other(e.Addr.Addr()) }
	return Rules{
		Untracked: slices.DeleteFunc(slices.Clone(r.Untracked), endpoint),
		VRRP:      slices.DeleteFunc(slices.Clone(r.VRRP), func(p netip.Prefix) bool { return other(p.Addr()) }),
		Probed:    slices.DeleteFunc(slices.Clone(r.Probed), endpoint),
		Directors: slices.DeleteFunc(slices.Clone(r.Directors), other),
		Sync:      r.Sync && !ipv6,
	}
}

// mark tells rules of ours that are as they should be from older ones: it
// stands in each rule.
func (r Rules) mark() string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%v", r)
	return fmt.Sprintf("holdfast:%016x", h.Sum64())
}

// join wraps what went wrong with a table.
func join(what string, errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("firewall: %s: %w", what, err)
	}
	return nil
}

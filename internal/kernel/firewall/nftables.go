package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// nftTable is our table, of the family inet. What it accepts, another table may
// drop; so it only leaves untracked, and refuses.
const nftTable = "holdfast"

// priorityRaw is before conntrack, which is at -200 (NF_IP_PRI_RAW).
const priorityRaw = -300

// nft changes the table by one netlink batch, which the kernel takes whole or
// not at all.
type nft struct{ conn *nftables.Conn }

func openNFT() (*nft, error) {
	conn, err := nftables.New(nftables.AsLasting())
	return &nft{conn}, join("open nftables", err)
}

// nftChain is a chain of ours, named like the hook that it stands at.
type nftChain struct {
	name string
	hook *nftables.ChainHook
}

// nftChains are both, in the order in which they are listed.
func nftChains() [2]nftChain {
	return [2]nftChain{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}}
}

// nftRule is a rule of ours in one of the two chains.
type nftRule struct {
	chain string
	exprs []expr.Any
	text  string
}

func (f *nft) Set(r Rules) (changes []string, err error) {
	rules := nftRules(r)
	there, same, err := f.look(rules, r.mark())
	if err != nil || same {
		return nil, join("look at the table inet "+nftTable, err)
	}
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyINet}
	if there {
		f.conn.DelTable(table)
	}
	if len(rules) > 0 {
		f.conn.AddTable(table)
		chains := map[string]*nftables.Chain{}
		for _, c := range nftChains() {
			chains[c.name] = f.conn.AddChain(&nftables.Chain{
				Name: c.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: c.hook, Priority: nftables.ChainPriorityRef(priorityRaw),
			})
		}
		for _, rule := range rules {
			f.conn.AddRule(&nftables.Rule{Table: table, Chain: chains[rule.chain], Exprs: rule.exprs, UserData: []byte(r.mark())})
		}
	}
	if err := f.conn.Flush(); err != nil {
		return nil, join("change the table inet "+nftTable, err)
	}
	return []string{fmt.Sprintf("nftables: table inet %s with %d services untracked", nftTable, len(r.Untracked))}, nil
}

// look tells whether our table is there, and whether it is as it should be.
func (f *nft) look(want []nftRule, mark string) (there, same bool, err error) {
	chains, err := f.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOENT) {
		return false, false, err
	}
	good := 0
	for _, c := range chains {
		if c.Table.Name != nftTable {
			continue
		}
		there = true
		rules, err := f.conn.GetRules(c.Table, c)
		if err != nil {
			return true, false, err
		}
		for _, rule := range rules {
			if !bytes.Equal(rule.UserData, []byte(mark)) {
				return true, false, nil
			}
			good++
		}
	}
	return there, good == len(want) && there == (len(want) > 0), nil
}

// nftRules are the rules of both chains, in order.
func nftRules(r Rules) (rules []nftRule) {
	for _, e := range r.Untracked {
		family := "ip"
		if e.Addr.Addr().Is6() {
			family = "ip6"
		}
		addr, port := e.Addr.Addr(), e.Addr.Port()
		rules = append(rules, nftRule{
			"prerouting", append(match(e, false), &expr.Notrack{}),
			fmt.Sprintf("%s daddr %v %v dport %d notrack", family, addr, e.Protocol, port),
		})
		if e.Protocol == TCP {
			rules = append(rules, nftRule{
				"output", append(append(match(e, true), bareSYN()...), &expr.Verdict{Kind: expr.VerdictDrop}),
				fmt.Sprintf("%s saddr %v tcp sport %d tcp flags & (fin | syn | rst | ack) == syn drop", family, addr, port),
			})
		}
		rules = append(rules, nftRule{
			"output", append(match(e, true), &expr.Notrack{}),
			fmt.Sprintf("%s saddr %v %v sport %d notrack", family, addr, e.Protocol, port),
		})
	}
	return rules
}

// match compares family, transport, and the address and port of the source or
// the destination.
func match(e Endpoint, source bool) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if source {
		offset = 12
	}
	if e.Addr.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
		if source {
			offset = 8
		}
	}
	port := uint32(2)
	if source {
		port = 0
	}
	addr := e.Addr.Addr().AsSlice()
	equal := func(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{family}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(addr))}, equal(addr),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{byte(e.Protocol)}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2},
		equal(binary.BigEndian.AppendUint16(nil, e.Addr.Port())),
	}
}

// bareSYN compares the flags FIN, SYN, RST and ACK with SYN alone.
func bareSYN() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}
}

// nftText is the table as nft(8) reads it, and as comments what else the
// site's own chains must let through.
func nftText(r Rules) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", nftTable, nftTable, nftTable)
	for _, c := range nftChains() {
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook %s priority raw;\n", c.name, c.name)
		for _, rule := range nftRules(r) {
			if rule.chain == c.name {
				fmt.Fprintf(&b, "\t\t%s\n", rule.text)
			}
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n# Your own chains of the hooks input and output must accept, before they drop what is invalid:\n")
	for _, ipv6 := range []bool{false, true} {
		part := r.family(ipv6)
		family := map[bool]string{false: "ip", true: "ip6"}[ipv6]
		for _, e := range part.Untracked {
			fmt.Fprintf(&b, "#   input:  %s daddr %v %v dport %d ct state untracked accept\n", family, e.Addr.Addr(), e.Protocol, e.Addr.Port())
			fmt.Fprintf(&b, "#   output: %s saddr %v %v sport %d ct state untracked accept\n", family, e.Addr.Addr(), e.Protocol, e.Addr.Port())
		}
		for _, network := range part.VRRP {
			fmt.Fprintf(&b, "#   input:  %s saddr %v meta l4proto 112 accept\n", family, network)
			fmt.Fprintf(&b, "#   output: %s daddr { %v, %v } meta l4proto 112 accept\n", family, network, group(ipv6))
		}
		if part.Sync {
			fmt.Fprintf(&b, "#   input and output: ip daddr %v udp dport %d accept\n", syncTo().Addr(), syncTo().Port())
		}
		for _, e := range part.Probed {
			fmt.Fprintf(&b, "#   input and output: %s daddr %v %v dport %d accept, and what is established\n", family, e.Addr.Addr(), e.Protocol, e.Addr.Port())
		}
	}
	return b.String()
}

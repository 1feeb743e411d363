package site

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// Lookup asks one node's DNS server for the IPv4 addresses of a name, from
// the client, once, and returns them sorted. An rcode other than NOERROR is an error.
func (s *Site) Lookup(ctx context.Context, n *Node, name string) ([]string, error) {
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	answer, err := s.Exchange(ctx, n, query)
	if err != nil {
		return nil, err
	}
	if answer.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("site: %s answers %s for %s", n.Name(), dns.RcodeToString[answer.Rcode], name)
	}
	var addrs []string
	for _, rr := range answer.Answer {
		if a, ok := rr.(*dns.A); ok {
			addrs = append(addrs, a.A.String())
		}
	}
	slices.Sort(addrs)
	return addrs, nil
}

// Exchange sends one query from the client to a node's DNS server over UDP.
func (s *Site) Exchange(ctx context.Context, n *Node, query *dns.Msg) (*dns.Msg, error) {
	raw, err := s.Client.DialContext(ctx, "udp", netip.AddrPortFrom(n.Addr(), 53).String())
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	answer, _, err := new(dns.Client).ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: raw})
	return answer, err
}

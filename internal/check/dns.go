package check

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// defaultQuery is asked when a dns check says nothing else: every server that
// resolves for others knows the root.
const defaultQuery = ". NS"

// question takes apart "example.com AAAA"; A is asked for when no type is
// given.
func question(query string) (name string, rrtype uint16, err error) {
	fields := strings.Fields(query)
	if len(fields) < 1 || len(fields) > 2 {
		return "", 0, fmt.Errorf("%q is no question; write a name and a type, as in \"example.com A\"", query)
	}
	if _, ok := dns.IsDomainName(fields[0]); !ok {
		return "", 0, fmt.Errorf("%q is no domain name", fields[0])
	}
	rrtype = dns.TypeA
	if len(fields) == 2 {
		known, ok := dns.StringToType[strings.ToUpper(fields[1])]
		if !ok {
			return "", 0, fmt.Errorf("%q is no type of record; write one such as A, AAAA, SOA or NS", fields[1])
		}
		rrtype = known
	}
	return dns.Fqdn(fields[0]), rrtype, nil
}

// dnsProbe asks a DNS server one question over UDP, and over TCP when the
// answer does not fit.
type dnsProbe struct {
	server string
	query  string
	name   string
	rrtype uint16
	limit  time.Duration
}

func newDNSProbe(d Definition) (Probe, error) {
	name, rrtype, err := question(d.Query)
	if err != nil {
		return nil, err
	}
	return dnsProbe{server: d.DNS, query: d.Query, name: name, rrtype: rrtype, limit: d.Timeout}, nil
}

// Probe passes when the server knows the answer, be it that there is none:
// NOERROR and NXDOMAIN (RFC 1035 §4.1.1). SERVFAIL, REFUSED and the rest come
// from a server that lives but is of no use to who asks.
func (p dnsProbe) Probe(ctx context.Context) Result {
	message := new(dns.Msg)
	message.SetQuestion(p.name, p.rrtype)
	message.SetEdns0(1232, false) // what no path fragments
	answer, err := p.exchange(ctx, "udp", message)
	if err == nil && answer.Truncated {
		answer, err = p.exchange(ctx, "tcp", message)
	}
	if err != nil {
		return critical("DNS %s at %s: %s", p.query, p.server, reason(err, p.limit))
	}
	rcode := dns.RcodeToString[answer.Rcode]
	if answer.Rcode == dns.RcodeSuccess || answer.Rcode == dns.RcodeNameError {
		return passing("DNS %s at %s: %s", p.query, p.server, rcode)
	}
	return critical("DNS %s at %s: %s", p.query, p.server, rcode)
}

func (p dnsProbe) exchange(ctx context.Context, network string, message *dns.Msg) (*dns.Msg, error) {
	client := dns.Client{Net: network, Timeout: p.limit}
	answer, _, err := client.ExchangeContext(ctx, message, p.server)
	return answer, err
}

// checkDNSServer says what keeps a text from being a server: an address, not
// a name, since who resolves it may be the very server that is asked.
func checkDNSServer(s string) error {
	if addr, err := netip.ParseAddrPort(s); err != nil || addr.Port() == 0 {
		return fmt.Errorf("%q is no address and port; write it as in 10.1.0.1:53 or [fd00::1]:53", s)
	}
	return nil
}

package dns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Drift is how two sources of records differ, as sorted zone file lines
// without TTL: records that only one of them has.
type Drift struct {
	Missing []string `json:"missing"` // we lack it
	Extra   []string `json:"extra"`   // the other lacks it
}

// IsEmpty tells whether there is none.
func (d Drift) IsEmpty() bool { return len(d.Missing)+len(d.Extra) == 0 }

// CompareZone compares a zone of ours, as ZoneText gives it, with another
// zone file. What differs by nature is left out: the SOA, and TTLs.
func CompareZone(ours string, other io.Reader, zone string) (Drift, error) {
	mine, err := zoneLines(strings.NewReader(ours), zone)
	if err != nil {
		return Drift{}, fmt.Errorf("dns: our own zone %s: %w", zone, err)
	}
	theirs, err := zoneLines(other, zone)
	if err != nil {
		return Drift{}, fmt.Errorf("dns: zone file of %s: %w", zone, err)
	}
	return difference(mine, theirs), nil
}

// CompareServer compares a zone of ours with the one that another server
// transfers to us (AXFR). It blocks until ctx ends.
func CompareServer(ctx context.Context, ours, zone string, server netip.AddrPort) (Drift, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", server.String())
	if err != nil {
		return Drift{}, fmt.Errorf("dns: transfer %s from %v: %w", zone, server, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	transfer := &dns.Transfer{Conn: &dns.Conn{Conn: conn}}
	envelopes, err := transfer.In(new(dns.Msg).SetAxfr(dns.Fqdn(zone)), server.String())
	if err != nil {
		return Drift{}, fmt.Errorf("dns: transfer %s from %v: %w", zone, server, err)
	}
	theirs := map[string]bool{}
	for e := range envelopes {
		if e.Error != nil {
			return Drift{}, fmt.Errorf("dns: transfer %s from %v: %w", zone, server, e.Error)
		}
		for _, rr := range e.RR {
			addLine(theirs, rr)
		}
	}
	mine, err := zoneLines(strings.NewReader(ours), zone)
	if err != nil {
		return Drift{}, fmt.Errorf("dns: our own zone %s: %w", zone, err)
	}
	return difference(mine, theirs), nil
}

// CompareHosts compares the addresses of a zone of ours with a hosts file
// (hosts(5)): names without a dot are taken to be in the zone, others outside
// it and loopback don't count.
func CompareHosts(ours string, hosts io.Reader, zone string) (Drift, error) {
	all, err := zoneLines(strings.NewReader(ours), zone)
	if err != nil {
		return Drift{}, fmt.Errorf("dns: our own zone %s: %w", zone, err)
	}
	mine := map[string]bool{}
	for line := range all {
		if words := strings.Fields(line); words[1] == "A" || words[1] == "AAAA" {
			mine[line] = true
		}
	}
	text, err := io.ReadAll(hosts)
	if err != nil {
		return Drift{}, fmt.Errorf("dns: hosts file: %w", err)
	}
	theirs, origin := map[string]bool{}, dns.CanonicalName(zone)
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(words[0])
		if err != nil || addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() {
			continue
		}
		kind := "A"
		if addr = addr.Unmap(); addr.Is6() {
			kind = "AAAA"
		}
		for _, host := range words[1:] {
			if !strings.Contains(host, ".") {
				host += "." + origin
			}
			if host = dns.CanonicalName(host); dns.IsSubDomain(origin, host) {
				theirs[host+" "+kind+" "+addr.String()] = true
			}
		}
	}
	return difference(mine, theirs), nil
}

// zoneLines reads a zone file into lines that can be compared.
func zoneLines(r io.Reader, zone string) (map[string]bool, error) {
	parser := dns.NewZoneParser(r, dns.Fqdn(zone), "")
	parser.SetDefaultTTL(3600)
	lines := map[string]bool{}
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		addLine(lines, rr)
	}
	return lines, parser.Err()
}

func addLine(lines map[string]bool, rr dns.RR) {
	switch rr.Header().Rrtype {
	case dns.TypeSOA, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeNSEC3PARAM, dns.TypeDNSKEY:
		return // each server's own
	}
	rr.Header().Name = dns.CanonicalName(rr.Header().Name)
	words := strings.Fields(rr.String()) // owner TTL class type data
	switch rr.Header().Rrtype {
	case dns.TypeNS, dns.TypeCNAME, dns.TypePTR, dns.TypeMX, dns.TypeSRV: // names know no case
		words[len(words)-1] = strings.ToLower(words[len(words)-1])
	}
	lines[strings.Join(append([]string{words[0]}, words[3:]...), " ")] = true
}

func difference(mine, theirs map[string]bool) Drift {
	d := Drift{Missing: []string{}, Extra: []string{}}
	for line := range theirs {
		if !mine[line] {
			d.Missing = append(d.Missing, line)
		}
	}
	for line := range mine {
		if !theirs[line] {
			d.Extra = append(d.Extra, line)
		}
	}
	slices.Sort(d.Missing)
	slices.Sort(d.Extra)
	return d
}

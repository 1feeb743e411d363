package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// Bounds of static records.
const (
	maxRecordText = 400     // bytes: it is a document's key too
	maxStatic     = 100_000 // records of the cluster file's section, expanded
)

// staticTypes are the types that a static record may have. SOA and DNSSEC's
// are the server's own business.
func staticTypes() []uint16 {
	return []uint16{
		dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeCNAME, dns.TypeMX, dns.TypeTXT, dns.TypeSRV, dns.TypeCAA, dns.TypeNS,
		dns.TypeSSHFP, dns.TypeTLSA, dns.TypeNAPTR, dns.TypeSVCB, dns.TypeHTTPS, dns.TypeURI, dns.TypeDS,
	}
}

// static is a record from the cluster file or the store.
type static struct {
	owner name
	rr    dns.RR
}

// String is the record in zone file form.
func (s static) String() string { return strings.Join(strings.Fields(s.rr.String()), " ") }

// key is the record without its TTL and class: the same for records that say
// the same.
func (s static) key() string {
	words := strings.Fields(s.rr.String()) // owner TTL class type data
	return strings.Join(append([]string{words[0]}, words[3:]...), " ")
}

// stored reads a record of the store: its key, and its TTL as the value.
func stored(d *state.Document, domain string) (static, error) {
	ttl, err := strconv.ParseUint(string(d.Value), 10, 31)
	if err != nil {
		return static{}, fmt.Errorf("TTL %q of record %q is no number", d.Value, d.Key)
	}
	return parseStatic(d.Key, domain, uint32(ttl))
}

// expandStatic reads a record in zone file form, "OWNER [TTL] TYPE DATA". A
// name without a trailing dot is in the domain; "@" is the domain itself; an
// address stands for its reverse name. Node sets in brackets in the owner and
// the data are expanded side by side: "login[1-3] CNAME fbservice[1-3]".
func expandStatic(text, domain string, ttl uint32) ([]static, error) {
	owner, rest, ok := strings.Cut(strings.TrimSpace(text), " ")
	if !ok {
		return nil, errors.New("a record is written OWNER [TTL] TYPE DATA, as in a zone file")
	}
	if !strings.Contains(owner, "[") {
		s, err := parseStatic(text, domain, ttl)
		return []static{s}, err
	}
	owners, err := cluster.Expand(owner, nil)
	if err != nil {
		return nil, err
	}
	words := make([][]string, 0, 4)
	for _, word := range strings.Fields(rest) {
		items := []string{word}
		if strings.Contains(word, "[") {
			if items, err = cluster.ExpandList(word); err != nil {
				return nil, err
			}
			if len(items) != len(owners) {
				return nil, fmt.Errorf("%s are %d items for %d names", word, len(items), len(owners))
			}
		}
		words = append(words, items)
	}
	all := make([]static, 0, len(owners))
	for i, o := range owners {
		line := []string{o}
		for _, items := range words {
			line = append(line, items[i%len(items)])
		}
		s, err := parseStatic(strings.Join(line, " "), domain, ttl)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// parseStatic reads one record.
func parseStatic(text, domain string, ttl uint32) (static, error) {
	if len(text) > maxRecordText {
		return static{}, fmt.Errorf("the record has %d bytes, more than %d", len(text), maxRecordText)
	}
	if strings.ContainsAny(text, "\n\r;$()") {
		return static{}, errors.New("a record is one line, without comments, parentheses and directives")
	}
	owner, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	if addr, err := netip.ParseAddr(owner); err == nil {
		owner = reverseName(addr.Unmap(), addr.Unmap().BitLen()).String()
	}
	parser := dns.NewZoneParser(strings.NewReader(owner+" "+rest+"\n"), dns.Fqdn(domain), "")
	parser.SetDefaultTTL(ttl)
	rr, ok := parser.Next()
	if err := parser.Err(); err != nil {
		return static{}, fmt.Errorf("not a record in zone file form: %s", strings.TrimPrefix(err.Error(), "dns: "))
	}
	if !ok {
		return static{}, errors.New("not a record in zone file form")
	}
	h := rr.Header()
	switch {
	case !slices.Contains(staticTypes(), h.Rrtype):
		return static{}, fmt.Errorf("type %s can't be set: one of %s can", dns.TypeToString[h.Rrtype], typeNames())
	case h.Class != dns.ClassINET:
		return static{}, errors.New("class must be IN")
	case h.Ttl > uint32(maxTTL.Seconds()*24):
		return static{}, fmt.Errorf("TTL %d is more than a day", h.Ttl)
	case strings.Contains(h.Name, "*"):
		return static{}, errors.New("wildcards are not served")
	}
	h.Name = strings.ToLower(h.Name)
	// The library takes an update's "name type" without data for a record.
	if again, err := dns.NewRR(rr.String()); err != nil || again == nil || !dns.IsDuplicate(rr, again) {
		return static{}, fmt.Errorf("the data is not that of a record of type %s", dns.TypeToString[h.Rrtype])
	}
	n, err := wireName(h.Name)
	if err != nil {
		return static{}, err
	}
	s := static{owner: n, rr: rr}
	if _, err := s.record(); err != nil {
		return static{}, fmt.Errorf("the data can't be packed: %w", err)
	}
	return s, nil
}

func typeNames() string {
	var list []string
	for _, t := range staticTypes() {
		list = append(list, dns.TypeToString[t])
	}
	return strings.Join(list, ", ")
}

// wireName is the key of a name in presentation form, escapes included.
func wireName(text string) (name, error) {
	var b [maxName + 1]byte
	n, err := dns.PackDomainName(dns.Fqdn(text), b[:], 0, nil, false)
	if err != nil || n > maxName {
		return "", fmt.Errorf("%q is no domain name", text)
	}
	for i := range b[:n] {
		b[i] = lower(b[i]) // a length is no letter
	}
	return name(b[:n]), nil
}

// record packs a static record. Its target, if it has one, is where glue
// points to.
func (s static) record() (record, error) {
	buf := make([]byte, dns.Len(s.rr)+16)
	end, err := dns.PackRR(s.rr, buf, 0, nil, false)
	if err != nil {
		return record{}, fmt.Errorf("dns: %s: %w", s, err)
	}
	at, _ := skipName(buf, 0)
	r := record{wire: buf[at:end:end]}
	switch s.rr.Header().Rrtype {
	case dns.TypeNS, dns.TypePTR, dns.TypeCNAME:
		r.target = offsetData
	case dns.TypeMX:
		r.target = offsetData + 2
	case dns.TypeSRV:
		r.target = offsetData + 6
	}
	return r, nil
}

// targetName is the name in a record that clients look up next; "" for none.
func (s static) targetName() name {
	var text string
	switch rr := s.rr.(type) {
	case *dns.NS:
		text = rr.Ns
	case *dns.CNAME:
		text = rr.Target
	case *dns.MX:
		text = rr.Mx
	case *dns.SRV:
		text = rr.Target
	default:
		return ""
	}
	n, err := wireName(text)
	if err != nil {
		return ""
	}
	return n
}

// statics reads `dns: records:`.
func (d *decoder) statics(raw []string, ttl uint32) []static {
	var all []static
	for i, text := range raw {
		list, err := expandStatic(text, d.file.Domain, ttl)
		switch {
		case err != nil:
			d.errorf(fmt.Sprintf("records[%d]", i), "%v", err)
		case len(all)+len(list) > maxStatic:
			d.errorf("records", "more than %d records", maxStatic)
			return all
		default:
			all = append(all, list...)
		}
	}
	return all
}

// zones reads `dns: zones:`.
func (d *decoder) zones(raw []string) []name {
	var list []name
	for i, text := range raw {
		n, err := parseName(text)
		switch {
		case err != nil || n == root || strings.ContainsAny(text, " \t:/\\"):
			d.errorf(fmt.Sprintf("zones[%d]", i), "%q is no zone; write a name such as lab.example.com", text)
		case slices.Contains(list, n) || strings.EqualFold(n.String(), d.file.Domain+".") || strings.EqualFold(n.String(), d.file.VirtualDomain+"."):
			d.errorf(fmt.Sprintf("zones[%d]", i), "%s is a zone already", n)
		default:
			list = append(list, n)
		}
	}
	return list
}

// checkStatics refuses records of the file that would not be served.
func (c *compiler) checkStatics() error {
	for _, s := range c.statics {
		if err := c.refuses(s, nil); err != nil {
			return fmt.Errorf("dns: record %q: %w", s, err)
		}
	}
	return nil
}

// refuses says why a record can't be added to those that a name has, in the
// file and, for a record of the store, there.
func (c *compiler) refuses(s static, t *table) error {
	base := c.baseOf(s.owner)
	if base == nil {
		return fmt.Errorf("%s is in no zone that can have static records: %s", s.owner, c.zoneNames())
	}
	find := base.zone.names.get
	if t != nil {
		if z := t.cuts[base.zone.origin].zone; z != nil {
			find = z.names.get
		}
	}
	kind := s.rr.Header().Rrtype
	if s.owner == base.zone.origin && (kind == dns.TypeCNAME || kind == dns.TypeNS) {
		return fmt.Errorf("the origin of a zone has no %s of its own making", dns.TypeToString[kind])
	}
	n := find([]byte(s.owner))
	if n == nil {
		return nil
	}
	alias := n.find(dns.TypeCNAME) != nil
	if kind == dns.TypeCNAME && len(n.sets) > 0 || kind != dns.TypeCNAME && alias {
		return fmt.Errorf("%s has other records, and a CNAME stands alone (RFC 1034 §3.6.2)", s.owner)
	}
	return nil
}

// zoneNames lists the zones that may have static records.
func (c *compiler) zoneNames() string {
	var list []string
	for origin := range c.bases {
		list = append(list, origin.String())
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

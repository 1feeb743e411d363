package cluster

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// This file reads scalars. Every reader notes what is wrong with the value
// and what would be right, and tells whether it could read it; a nil or
// broken value is not read and not noted.

// wrongKind notes that a value is not of the kind wanted ("a duration such as
// 10s").
func (p *problems) wrongKind(v *value, wanted string) {
	if v.broken {
		return
	}
	if v.kind == null {
		p.at(v.pos, v.path, "has no value; give %s or leave the key out", wanted)
		return
	}
	p.at(v.pos, v.path, "%s where %s belongs", v.quoted(), wanted)
}

// text reads text. A number or a truth value must be quoted to be text.
func (p *problems) text(v *value) (string, bool) {
	switch {
	case v == nil || v.broken:
		return "", false
	case v.kind == number || v.kind == boolean:
		p.at(v.pos, v.path, "%s where text belongs; write %q if it is meant", v.text, v.text)
		return "", false
	case v.kind != text:
		p.wrongKind(v, "text")
		return "", false
	case v.text == "":
		p.at(v.pos, v.path, "is empty; give a value or leave the key out")
		return "", false
	}
	return v.text, true
}

// folded reads the text of a node set or folded list, which may look like a
// number.
func (p *problems) folded(v *value, wanted string) (string, bool) {
	switch {
	case v == nil || v.broken:
		return "", false
	case v.kind == list:
		p.at(v.pos, v.path, "a YAML list where %s belongs; put quotes around the brackets, as in \"[1-4]\"", article(wanted))
		return "", false
	case v.kind != text && v.kind != number || v.text == "":
		p.wrongKind(v, article(wanted))
		return "", false
	}
	return v.text, true
}

// article puts "a" or "an" before what lacks one.
func article(what string) string {
	switch {
	case strings.HasPrefix(what, "a ") || strings.HasPrefix(what, "an ") || what == "text":
		return what
	case strings.ContainsRune("aeiou", rune(what[0])):
		return "an " + what
	}
	return "a " + what
}

func (p *problems) boolean(v *value) (bool, bool) {
	if v == nil || v.broken {
		return false, false
	}
	b, err := strconv.ParseBool(v.text)
	if v.kind != boolean || err != nil {
		p.wrongKind(v, "true or false")
		return false, false
	}
	return b, true
}

// integer reads a whole number from least to most; unit ("" none) is for the
// message.
func (p *problems) integer(v *value, least, most int64, unit string) (int64, bool) {
	if v == nil || v.broken {
		return 0, false
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	if v.kind != number || err != nil {
		p.wrongKind(v, "a whole number")
		return 0, false
	}
	if n < least || n > most {
		p.at(v.pos, v.path, "%s; the range is %d to %d%s", clip(v.text), least, most, unit)
		return 0, false
	}
	return n, true
}

func (p *problems) float(v *value) (float64, bool) {
	if v == nil || v.broken {
		return 0, false
	}
	x, err := strconv.ParseFloat(v.text, 64)
	if v.kind != number || err != nil || math.IsInf(x, 0) || math.IsNaN(x) {
		p.wrongKind(v, "a number")
		return 0, false
	}
	return x, true
}

// duration reads "10s", "1h30m" or "500ms", from least to most.
func (p *problems) duration(v *value, least, most time.Duration) (time.Duration, bool) {
	if v == nil || v.broken {
		return 0, false
	}
	if v.kind == number && v.text != "0" {
		p.at(v.pos, v.path, "%s has no unit; write %ss, %sms or %sm", v.text, v.text, v.text, v.text)
		return 0, false
	}
	d, err := time.ParseDuration(v.text)
	if v.kind != text && v.kind != number || err != nil {
		p.wrongKind(v, "a duration such as 10s, 500ms or 1h30m")
		return 0, false
	}
	if d < least || d > most {
		p.at(v.pos, v.path, "%s; the range is %s to %s", v.text, short(least), short(most))
		return 0, false
	}
	return d, true
}

// short writes a duration without its zero units.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// addr reads an IP address.
func (p *problems) addr(v *value) (netip.Addr, bool) {
	if v == nil || v.broken {
		return netip.Addr{}, false
	}
	if v.kind != text && v.kind != number {
		p.wrongKind(v, "an IP address")
		return netip.Addr{}, false
	}
	a, err := parseAddr(v.text)
	if err != nil {
		p.at(v.pos, v.path, "%v", err)
	}
	return a, err == nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		return netip.Addr{}, fmt.Errorf("%q is a prefix; write the address alone", clip(s))
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", clip(s))
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q has a zone; write the address alone", clip(s))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%q is an IPv4 address in IPv6 clothes; write %s", clip(s), a.Unmap())
	case a.IsUnspecified() || a.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%s is not the address of a host", a)
	}
	return a, nil
}

// prefix reads an IP prefix without host bits.
func (p *problems) prefix(v *value) (netip.Prefix, bool) {
	if v == nil || v.broken {
		return netip.Prefix{}, false
	}
	if v.kind != text && v.kind != number {
		p.wrongKind(v, "a prefix such as 10.1.0.0/24")
		return netip.Prefix{}, false
	}
	n, err := netip.ParsePrefix(v.text)
	switch {
	case err != nil:
		p.at(v.pos, v.path, "%q is not a prefix; write it as in 10.1.0.0/24 or fd00:1::/64", clip(v.text))
	case n.Addr().Is4In6():
		p.at(v.pos, v.path, "%q is an IPv4 prefix in IPv6 clothes; write it as in 10.1.0.0/24", clip(v.text))
	case n != n.Masked():
		p.at(v.pos, v.path, "%s has host bits; write %s", v.text, n.Masked())
	default:
		return n, true
	}
	return netip.Prefix{}, false
}

// parseMAC reads an Ethernet or InfiniBand hardware address, in lower case with
// colons.
func parseMAC(s string) (string, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 && len(hw) != 20 {
		return "", fmt.Errorf("%q is not a hardware address; write it as in aa:bb:cc:dd:ee:00", clip(s))
	}
	return hw.String(), nil
}

// label says what keeps a name from being a DNS label (RFC 1035 §2.3.1, digits
// first allowed by RFC 1123 §2.1); nil when nothing does. Capitals are
// refused so that a name has one spelling.
func label(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("an empty name")
	case len(s) > 63:
		return fmt.Errorf("%q has %d characters; a DNS label has at most 63", clip(s), len(s))
	case s != strings.ToLower(s) && label(strings.ToLower(s)) == nil:
		return fmt.Errorf("%q has capitals; write %q", clip(s), clip(strings.ToLower(s)))
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("%q begins or ends with a hyphen", clip(s))
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("%q is not a DNS label: only a-z, 0-9 and - may stand in it, not %q", clip(s), r)
		}
	}
	return nil
}

// maxDomain leaves room for one label: a DNS name has at most 253 characters
// (RFC 1035 §3.1).
const maxDomain = 253 - 64

// domainName says what keeps a name from being a DNS domain as it is written
// here: labels in lower case, no dot at the end.
func domainName(s string) error {
	switch {
	case strings.HasSuffix(s, ".") && s != ".":
		return fmt.Errorf("%q ends with a dot; write %q", clip(s), clip(strings.ToLower(strings.TrimRight(s, "."))))
	case len(s) > maxDomain:
		return fmt.Errorf("%q has %d characters; with more than %d there is no room for names below it", clip(s), len(s), maxDomain)
	case s != strings.ToLower(s):
		return fmt.Errorf("%q has capitals; write %q", clip(s), clip(strings.ToLower(s)))
	}
	for part := range strings.SplitSeq(s, ".") {
		if err := label(part); err != nil {
			return fmt.Errorf("%q is not a domain: %w", clip(s), err)
		}
	}
	return nil
}

// within tells whether a domain is another or stands below it.
func within(domain, parent string) bool {
	return domain == parent || strings.HasSuffix(domain, "."+parent)
}

// scalar gives a scalar in the Go type that its YAML kind has; a number that
// is not plain decimal stays text.
func (v *value) scalar() any {
	switch v.kind {
	case boolean:
		return v.text == "true" || v.text == "True" || v.text == "TRUE"
	case number:
		if n, err := strconv.ParseInt(v.text, 10, 64); err == nil {
			return n
		}
		if x, err := strconv.ParseFloat(v.text, 64); err == nil && !math.IsInf(x, 0) && !math.IsNaN(x) {
			return x
		}
		return v.text
	case null:
		return nil
	}
	return v.text
}

package dns

import (
	"net/netip"
	"strconv"
)

// Where addresses have their names: RFC 1035 §3.5, RFC 3596 §2.5.
const (
	reverse4 name = "\x07in-addr\x04arpa\x00"
	reverse6 name = "\x03ip6\x04arpa\x00"
)

const hexDigits = "0123456789abcdef"

// reverseName is the name of an address's PTR, or of the reverse zone of a
// prefix whose length is on a border (octets of IPv4, nibbles of IPv6).
func reverseName(addr netip.Addr, bits int) name {
	if addr.Is4() {
		n, a := reverse4, addr.As4()
		for _, octet := range a[:bits/8] {
			n, _ = n.child(strconv.Itoa(int(octet)))
		}
		return n
	}
	n, a := reverse6, addr.As16()
	for i := range bits / 4 {
		nibble := a[i/2] >> 4
		if i%2 == 1 {
			nibble = a[i/2] & 0xf
		}
		n, _ = n.child(hexDigits[nibble : nibble+1])
	}
	return n
}

// parseReverse reads the prefix that a name below in-addr.arpa or ip6.arpa
// speaks of: all of the address for a PTR's name, less for the names above it.
// Labels are read from the right for as long as they are numbers of an
// address; what stands before them is left over and does not count.
func parseReverse(n name) (netip.Prefix, bool) {
	switch {
	case n.below(reverse4):
		return parseReverse4(n)
	case n.below(reverse6):
		return parseReverse6(n)
	}
	return netip.Prefix{}, false
}

func parseReverse4(n name) (netip.Prefix, bool) {
	var a [4]byte
	octets := 0
	for _, label := range labelsFromRight(n, reverse4) {
		v, err := strconv.ParseUint(label, 10, 8)
		if err != nil || octets == len(a) || len(label) > 1 && label[0] == '0' {
			break
		}
		a[octets] = byte(v)
		octets++
	}
	return netip.PrefixFrom(netip.AddrFrom4(a), octets*8), true
}

func parseReverse6(n name) (netip.Prefix, bool) {
	var a [16]byte
	nibbles := 0
	for _, label := range labelsFromRight(n, reverse6) {
		v, err := strconv.ParseUint(label, 16, 4)
		if err != nil || nibbles == 2*len(a) || len(label) != 1 {
			break
		}
		a[nibbles/2] |= byte(v) << (4 * (1 - nibbles%2))
		nibbles++
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), nibbles*4), true
}

// labelsFromRight lists the labels of n in front of origin, the one next to
// origin first.
func labelsFromRight(n, origin name) []string {
	var labels []string
	for ; len(n) > len(origin); n = n.parent() {
		labels = append([]string{string(n[1 : 1+int(n[0])])}, labels...)
	}
	return labels
}

// reverseZone is a zone that holds names for addresses of prefixes; partial
// when it is larger than they are.
type reverseZone struct {
	origin  name
	partial bool
}

// reverseZones lists the zones for a network. A prefix between two borders is
// split at the next one (10.1.4.0/22 has four zones of 256 addresses each),
// so that each zone is wholly ours. Where the next border is a single address
// (/25 to /32, /125 to /128) the zone around the prefix serves, partially.
func reverseZones(p netip.Prefix) []reverseZone {
	p = p.Masked()
	unit := 8
	if p.Addr().Is6() {
		unit = 4
	}
	if p.Bits()%unit == 0 && p.Bits() < p.Addr().BitLen() {
		return []reverseZone{{origin: reverseName(p.Addr(), p.Bits())}}
	}
	next := (p.Bits() + unit - 1) / unit * unit
	if next >= p.Addr().BitLen() {
		return []reverseZone{{origin: reverseName(p.Addr(), p.Addr().BitLen()-unit), partial: true}}
	}
	var zones []reverseZone
	for addr := p.Addr(); addr.IsValid() && p.Contains(addr); addr = after(addr, next) {
		zones = append(zones, reverseZone{origin: reverseName(addr, next)})
	}
	return zones
}

// after is the first address behind the prefix of addr with that many bits,
// which are a multiple of 4; the zero Addr when there is none.
func after(addr netip.Addr, bits int) netip.Addr {
	b := addr.AsSlice()
	step := 1 << ((8 - bits%8) % 8)
	for i := (bits - 1) / 8; i >= 0; i-- {
		sum := int(b[i]) + step
		b[i] = byte(sum)
		if sum < 256 {
			next, _ := netip.AddrFromSlice(b)
			return next
		}
		step = 1
	}
	return netip.Addr{}
}

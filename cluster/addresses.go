package cluster

import (
	"fmt"
	"net/netip"
	"slices"
)

// ParseAddrPort reads "10.1.0.1", "10.1.0.1:53", "2001:db8::1" or
// "[2001:db8::1]:53"; port is what an address without one means.
func ParseAddrPort(text string, port uint16) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), port), nil
	}
	if p, err := netip.ParseAddrPort(text); err == nil && p.Port() != 0 {
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port()), nil
	}
	return netip.AddrPort{}, fmt.Errorf("%q is no address: write an IP, or IP:port with a port from 1 to 65535", text)
}

// AddrPorts reads the list at a key of the section, of which texts is the
// content, as ParseAddrPort does. Each may stand there once.
func (s Section) AddrPorts(key string, texts []string, port uint16) (list []netip.AddrPort, mistakes Errors) {
	for i, text := range texts {
		at := fmt.Sprintf("%s[%d]", key, i)
		addr, err := ParseAddrPort(text, port)
		switch {
		case err != nil:
			mistakes = append(mistakes, s.Errorf(at, "%v", err))
		case slices.Contains(list, addr):
			mistakes = append(mistakes, s.Errorf(at, "%v stands here twice", addr))
		default:
			list = append(list, addr)
		}
	}
	return list, mistakes
}

// Prefixes reads the list of networks at a key of the section, of which texts
// is the content: masked, none where there are no texts.
func (s Section) Prefixes(key string, texts []string) (list []netip.Prefix, mistakes Errors) {
	for i, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			mistakes = append(mistakes, s.Errorf(fmt.Sprintf("%s[%d]", key, i), "%q is no network: write a prefix such as 10.1.0.0/24, host bits zero", text))
			continue
		}
		list = append(list, p)
	}
	return list, mistakes
}

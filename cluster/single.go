package cluster

import (
	"fmt"
	"net/netip"
	"strings"
)

// Single is the cluster of one node with no file at all: the embedded default.
// node is the host's name, addr its address; a name that cannot stand in DNS
// is bent until it can, and a zero address is 127.0.0.1. Whatever the host is
// called, Self finds its node.
func Single(node string, addr netip.Addr) *File {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	source := fmt.Sprintf(`schema: %d
cluster: holdfast
domain: holdfast.internal
networks:
  main: {prefix: "%s/%d"}
roles:
  service: {voters: 1, run: [dns]}
nodes:
  "%s": {role: service, addresses: {main: "%s"}}
`, Schema, addr, addr.BitLen(), singleName(node), addr)
	f, err := Parse("(built in)", []byte(source), nil)
	if err != nil {
		panic("cluster: the built-in file is wrong: " + err.Error())
	}
	f.single = true
	return f
}

// singleName makes a DNS label of a host's name.
func singleName(host string) string {
	short, _, _ := strings.Cut(strings.ToLower(host), ".")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, short)
	name = strings.Trim(name[:min(len(name), 63)], "-")
	if name == "" {
		return "localhost"
	}
	return name
}

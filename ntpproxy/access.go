package ntpproxy

import "net/netip"

// class is what a client is to us.
type class uint8

const (
	stranger class = iota // served, within limits
	member                // of the cluster: served however often it asks
	denied
)

// access says who is served.
type access struct {
	own   []netip.Prefix // the cluster's networks, and loopback
	allow []netip.Prefix // who else
	deny  []netip.Prefix // comes before both
}

func (a *access) class(client netip.Addr) class {
	switch {
	case contains(a.deny, client):
		return denied
	case contains(a.own, client):
		return member
	case contains(a.allow, client):
		return stranger
	}
	return denied
}

func contains(list []netip.Prefix, addr netip.Addr) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

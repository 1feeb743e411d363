package vrrp

import (
	"crypto/subtle"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// insistence is how many adverts in a row must say the same before a
	// disagreement counts, or is over: a reload on two nodes is no accident.
	// One is enough where it makes us discard them: a keepalived that discards
	// ours in turn sends a single one, and is Active in silence.
	insistence = 3
	// maxPeers bounds what strangers on a multicast network can make us keep.
	maxPeers = 16
	// staleAfter is how long after a peer's last advert what it disagreed on
	// may have been put right: a Backup says nothing.
	staleAfter = 15 * time.Minute
)

// field is something that two routers must agree on.
type field uint8

const (
	fieldVersion field = iota
	fieldAuthentication
	fieldPassword
	fieldInterval
	fieldAddresses
	fieldChecksum
	fieldOwner
	fieldPriority

	fields
)

func (f field) String() string {
	return [...]string{"version", "authentication", "password", "interval", "addresses", "checksum", "owner", "priority"}[f]
}

// fieldSet is a set of fields.
type fieldSet uint16

func (s fieldSet) has(f field) bool { return s&(1<<f) != 0 }

// peer is another router of the same virtual router, as its adverts show it.
type peer struct {
	address  netip.Addr
	advert   Advert
	at       time.Time
	answered time.Time     // when its claim to be Active was last answered
	against  [fields]uint8 // adverts in a row that speak against what named says
	named    fieldSet      // what was told by Disagree
}

// peer finds one; nil: never heard.
func (r *router) peer(address netip.Addr) *peer {
	for _, p := range r.peers {
		if p.address == address {
			return p
		}
	}
	return nil
}

// hear notes an advert and says what it newly disagrees on, or no longer.
func (m *Machine) hear(r *router, from netip.Addr, a *Advert, at time.Time) *peer {
	p := r.peer(from)
	if p == nil {
		if len(r.peers) >= maxPeers {
			m.forget(r, slices.MinFunc(r.peers, func(a, b *peer) int { return a.at.Compare(b.at) }))
		}
		p = &peer{address: from}
		r.peers = append(r.peers, p)
	}
	addresses := append(p.advert.Addresses[:0], a.Addresses...)
	p.advert, p.at = *a, at
	p.advert.Addresses = addresses
	differs, compared := r.disagreements(&p.advert)
	if p.judge(differs, compared, r.grave()) {
		m.give(Action{Kind: Disagree, Router: r.index, Peer: p.address, Fields: p.disagrees(r)})
	}
	m.retract(r, at)
	return p
}

// retract ends what was told about peers that were not heard for staleAfter.
func (m *Machine) retract(r *router, at time.Time) {
	for _, p := range r.peers {
		if p.named != 0 && at.Sub(p.at) > staleAfter {
			p.named, p.against = 0, [fields]uint8{}
			m.give(Action{Kind: Disagree, Router: r.index, Peer: p.address, Reason: fmt.Sprintf("it was not heard for %v", staleAfter)})
		}
	}
}

// forget drops a peer, and what was told about it.
func (m *Machine) forget(r *router, p *peer) {
	if p.named != 0 {
		m.give(Action{Kind: Disagree, Router: r.index, Peer: p.address, Reason: "it is forgotten"})
	}
	r.peers = slices.DeleteFunc(r.peers, func(q *peer) bool { return q == p })
}

// grave are the fields whose difference makes us discard adverts: see conflicts.
func (r *router) grave() fieldSet {
	if r.Version == 2 {
		return 1<<fieldVersion | 1<<fieldAuthentication | 1<<fieldPassword | 1<<fieldInterval
	}
	return 1 << fieldVersion
}

// judge takes what one advert says of the fields that it lets us compare, and
// tells whether named changed.
func (p *peer) judge(differs, compared, grave fieldSet) bool {
	before := p.named
	for f := range fields {
		switch {
		case !compared.has(f):
			continue
		case differs.has(f) == p.named.has(f):
			p.against[f] = 0
			continue
		}
		p.against[f]++
		if p.against[f] >= insistence || differs.has(f) && grave.has(f) {
			p.named ^= 1 << f
			p.against[f] = 0
		}
	}
	return p.named != before
}

// disagreements compares an advert with what we would send. Another version
// leaves nothing else to compare.
func (r *router) disagreements(a *Advert) (differs, compared fieldSet) {
	compare := func(f field, equal bool) {
		compared |= 1 << f
		if !equal {
			differs |= 1 << f
		}
	}
	compare(fieldVersion, a.Version == r.Version)
	if a.Version != r.Version {
		return differs, compared
	}
	if r.Version == 2 {
		compare(fieldAuthentication, a.AuthType == r.authType())
		compare(fieldPassword, a.AuthType != AuthPass || r.authType() != AuthPass || samePassword(a, r))
	} else if r.Source.Is4() {
		compare(fieldChecksum, a.Checksum == r.Checksum)
	}
	compare(fieldAddresses, sameAddresses(a.Addresses, r.Advertised))
	if a.Priority == 0 {
		return differs, compared
	}
	compare(fieldInterval, a.Interval == r.Interval)
	compare(fieldOwner, a.Priority != owner || r.Priority != owner)
	compare(fieldPriority, a.Priority == owner || a.Priority != r.priority)
	return differs, compared
}

// samePassword takes the same time whatever the difference.
func samePassword(a *Advert, r *router) bool {
	return subtle.ConstantTimeCompare(a.Password[:], r.Password[:]) == 1
}

func sameAddresses(a, b []netip.Addr) bool {
	if slices.Equal(a, b) {
		return true
	}
	if len(a) != len(b) {
		return false
	}
	for _, addr := range a {
		if !slices.Contains(b, addr) {
			return false
		}
	}
	return true
}

// disagrees spells out what was named.
func (p *peer) disagrees(r *router) []Disagreement {
	var list []Disagreement
	for f := range fields {
		if !p.named.has(f) {
			continue
		}
		d := Disagreement{Field: f.String()}
		d.Ours, d.Theirs = f.show(&p.advert, r)
		list = append(list, d)
	}
	return list
}

func (f field) show(a *Advert, r *router) (ours, theirs string) {
	switch f {
	case fieldVersion:
		return fmt.Sprint(r.Version), fmt.Sprint(a.Version)
	case fieldAuthentication:
		return authName(r.authType()), authName(a.AuthType)
	case fieldPassword:
		return "a password", "another one"
	case fieldInterval:
		return r.Interval.String(), a.Interval.String()
	case fieldAddresses:
		return joinAddresses(r.Advertised), joinAddresses(a.Addresses)
	case fieldChecksum:
		return r.Checksum.String(), a.Checksum.String()
	}
	return fmt.Sprint(r.priority), fmt.Sprint(a.Priority)
}

func authName(t uint8) string {
	switch t {
	case AuthNone:
		return "none"
	case AuthPass:
		return "PASS"
	}
	return fmt.Sprintf("type %d", t)
}

func joinAddresses(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return "none"
	}
	words := make([]string, len(addrs))
	for i, addr := range addrs {
		words[i] = addr.String()
	}
	return strings.Join(words, " ")
}

// String names how a packet is summed.
func (c Checksum) String() string {
	if c == Plain {
		return "without pseudo-header"
	}
	return "with pseudo-header"
}

func (p *peer) status(r *router) PeerStatus {
	advert := p.advert
	advert.Addresses = slices.Clone(advert.Addresses)
	return PeerStatus{Address: p.address, Advert: advert, At: p.at, Disagrees: p.disagrees(r)}
}

package vrrp

import (
	"fmt"
	"net/netip"
	"time"

	"holdfast/internal/kernel/link"
)

// linkTable is what the kernel said about interfaces. The loop owns it.
type linkTable struct {
	links map[int]link.Link
	addrs map[int]map[netip.Prefix]link.Addr
}

func newLinkTable() *linkTable {
	return &linkTable{links: map[int]link.Link{}, addrs: map[int]map[netip.Prefix]link.Addr{}}
}

// take folds a notice in and tells whether anything that decides where a
// router belongs is another: a link, or an address that is not ours.
func (t *linkTable) take(e link.Event) (relevant bool) {
	switch {
	case e.Link != nil && e.Gone:
		_, had := t.links[e.Link.Index]
		delete(t.links, e.Link.Index)
		delete(t.addrs, e.Link.Index)
		return had
	case e.Link != nil:
		before, had := t.links[e.Link.Index]
		t.links[e.Link.Index] = *e.Link
		return !had || before.Name != e.Link.Name || before.Running != e.Link.Running || before.Up != e.Link.Up ||
			!sameHardware(&before, e.Link)
	case e.Addr != nil && e.Gone:
		_, had := t.addrs[e.Addr.Link][e.Addr.Prefix]
		delete(t.addrs[e.Addr.Link], e.Addr.Prefix)
		return had && decides(*e.Addr)
	case e.Addr != nil:
		of := t.addrs[e.Addr.Link]
		if of == nil {
			of = map[netip.Prefix]link.Addr{}
			t.addrs[e.Addr.Link] = of
		}
		before, had := of[e.Addr.Prefix]
		of[e.Addr.Prefix] = *e.Addr
		return decides(*e.Addr) && (!had || before != *e.Addr)
	}
	return false
}

// decides tells whether an address may be a primary one: those that we added
// ourselves come by the hundred and never are.
func decides(a link.Addr) bool { return a.Protocol != link.Protocol }

// has tells whether a link has an address, ready for use.
func (t *linkTable) has(index int, addr netip.Addr) bool {
	for prefix, a := range t.addrs[index] {
		if prefix.Addr() == addr && !a.Tentative {
			return true
		}
	}
	return false
}

// linkLocal is the address that adverts over IPv6 come from (RFC 9568 §5.1.2.1).
func (t *linkTable) linkLocal(index int) (found netip.Addr) {
	for prefix, a := range t.addrs[index] {
		addr := prefix.Addr()
		if addr.Is6() && addr.IsLinkLocalUnicast() && !a.Tentative && decides(a) && (!found.IsValid() || addr.Less(found)) {
			found = addr
		}
	}
	return found
}

// spot is where a router belongs now.
type spot struct {
	link   link.Link // Index 0: not found
	source netip.Addr
	why    string // it can't work there; "" it can
}

// find looks for the interface of a router, and says why it can't work when it
// can't.
func (t *linkTable) find(r *RouterSettings) spot {
	found, ok := t.byName(r.Interface)
	if r.Interface == "" {
		found, ok = t.byAddress(r.Home)
	}
	s := spot{link: found, source: r.Source}
	switch {
	case !ok && r.Interface != "":
		s.why = "there is no interface " + r.Interface
	case !ok:
		s.why = fmt.Sprintf("no interface has %s, this node's address in %s", r.Home, r.Network)
	case !found.Up:
		s.why = found.Name + " is down"
	case !found.Running:
		s.why = found.Name + " has no carrier"
	case r.Home.IsValid() && !t.has(found.Index, r.Home):
		s.why = fmt.Sprintf("%s lacks %s, this node's address in %s", found.Name, r.Home, r.Network)
	}
	if ok && !s.source.IsValid() {
		if s.source = t.linkLocal(found.Index); !s.source.IsValid() && s.why == "" {
			s.why = found.Name + " has no link-local address that is ready"
		}
	}
	return s
}

func (t *linkTable) byName(name string) (link.Link, bool) {
	for _, l := range t.links {
		if l.Name == name && name != "" {
			return l, true
		}
	}
	return link.Link{}, false
}

// byAddress finds the interface that has an address; of several the one that
// runs, and of those the first.
func (t *linkTable) byAddress(addr netip.Addr) (found link.Link, ok bool) {
	for index, l := range t.links {
		if !t.has(index, addr) {
			continue
		}
		if !ok || l.Running && !found.Running || l.Running == found.Running && index < found.Index {
			found, ok = l, true
		}
	}
	return found, ok
}

// settle is the debounce of one router's interface: what it is must have
// lasted before it counts.
type settle struct {
	known bool      // it was told before
	up    bool      // counts
	until time.Time // when the opposite begins to count; zero: nothing is under way
}

// see takes what the interface is. It tells whether what counts has changed.
func (s *settle) see(up bool, debounce time.Duration, now time.Time) (changed bool) {
	switch {
	case up == s.up && s.known:
		s.until = time.Time{}
		return false
	case !up && !s.known: // what is to last is that it is up
	case debounce > 0 && s.until.IsZero():
		s.until = now.Add(debounce)
		return false
	case debounce > 0 && now.Before(s.until):
		return false
	}
	s.known, s.up, s.until = true, up, time.Time{}
	return true
}

package link

import "net/netip"

// table is what Watch has told, so that only differences are told.
type table struct {
	changed    func(Event)
	generation int // of the list that is being told
	links      map[int]linkEntry
	addrs      map[addrKey]addrEntry
}

type linkEntry struct {
	Link
	generation int
}

type addrKey struct {
	link   int
	prefix netip.Prefix
}

type addrEntry struct {
	Addr
	generation int
}

func newTable(changed func(Event)) table {
	return table{changed: changed, links: map[int]linkEntry{}, addrs: map[addrKey]addrEntry{}}
}

func (t *table) link(l Link, gone bool) {
	known, ok := t.links[l.Index]
	if gone {
		if ok {
			t.forgetLink(known.Link)
		}
		return
	}
	t.links[l.Index] = linkEntry{l, t.generation}
	if !ok || !l.equal(known.Link) {
		t.changed(Event{Link: &l})
	}
}

func (t *table) addr(a Addr, gone bool) {
	key := addrKey{a.Link, a.Prefix}
	known, ok := t.addrs[key]
	if gone {
		if ok {
			t.forgetAddr(key)
		}
		return
	}
	t.addrs[key] = addrEntry{a, t.generation}
	if !ok || a != known.Addr {
		t.changed(Event{Addr: &a})
	}
}

// forget tells as gone what the latest list did not have, nor a notice since.
func (t *table) forget() {
	for key, a := range t.addrs {
		if a.generation != t.generation {
			t.forgetAddr(key)
		}
	}
	for _, l := range t.links {
		if l.generation != t.generation {
			t.forgetLink(l.Link)
		}
	}
}

func (t *table) forgetAddr(key addrKey) {
	a := t.addrs[key].Addr
	delete(t.addrs, key)
	t.changed(Event{Addr: &a, Gone: true})
}

func (t *table) forgetLink(l Link) {
	for key := range t.addrs {
		if key.link == l.Index {
			t.forgetAddr(key)
		}
	}
	delete(t.links, l.Index)
	t.changed(Event{Link: &l, Gone: true})
}

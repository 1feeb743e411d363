package logrelay

import (
	"bytes"
	"hash/maphash"
)

// appendApp writes a program's name as safeName writes a host's, and noApp if
// nothing is left of it.
func appendApp(dst, app []byte) []byte {
	app = bytes.TrimLeft(app, ".")
	if len(app) == 0 {
		return append(dst, noApp...)
	}
	for _, c := range app[:min(len(app), maxApp)] {
		dst = append(dst, safeByte(c))
	}
	return dst
}

// apps bounds the programs of a host that have files of their own: a name of a
// program is as easily invented as one of a host, and no host uses up the files
// of another. It belongs to one goroutine.
type apps struct {
	most  int
	rules *rules // that say what must not be written; nil: nothing
	seed  maphash.Seed
	known map[string]map[uint64]bool // by host, of which there are few, and the hash of the name
	room  []byte
}

func newApps(most int) apps {
	return apps{most: most, seed: maphash.MakeSeed(), known: map[string]map[uint64]bool{}}
}

// of is the name of a line's program in its file's path. It is good until the
// next call. Our own names count for nothing: what limits left out is told in
// the same file however many programs a host has.
func (a *apps) of(l *line) []byte {
	if _, covered := a.rules.app(l); covered {
		a.room = append(a.room[:0], hiddenApp...)
		return a.room
	}
	a.room = appendApp(a.room[:0], l.App)
	key, list := maphash.Bytes(a.seed, a.room), a.known[l.host]
	switch {
	case list[key], ownApp(a.room):
	case len(list) >= a.most:
		a.room = append(a.room[:0], overflow...)
	case list == nil:
		a.known[l.host] = map[uint64]bool{key: true}
	default:
		list[key] = true
	}
	return a.room
}

// ownApp tells whether a name is one that this relay gives, beside noApp: there
// is one file of it, whoever else calls itself so.
func ownApp(name []byte) bool {
	switch string(name) {
	case announceApp, overflow, hiddenApp:
		return true
	}
	return false
}

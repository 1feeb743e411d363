package logrelay

import (
	"bytes"
	"errors"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"strings"
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

// fill counts the programs that have files below the folder: written ones, and
// such that were put away. Each restart would else let a host have as many
// more. Those that are there keep their files, though they be too many. Links
// are not followed.
func (a *apps) fill(root *os.Root, t *pathTemplate) error {
	if !t.has[varApp] {
		return nil
	}
	return fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went meanwhile
			}
			return err
		}
		dir, base := path.Split(name)
		if file, _, away := cutRotated(base); away {
			base = file
		}
		names := strings.Split(dir+base, "/")
		values, ok := t.values(names)
		switch {
		case name == ".":
		case e.IsDir() && (!ok || len(names) == len(t.elements)):
			return fs.SkipDir
		case e.Type().IsRegular() && ok && len(names) == len(t.elements) && !ownApp([]byte(values[varApp])):
			key, list := maphash.String(a.seed, values[varApp]), a.known[values[varHost]]
			if list == nil {
				list = map[uint64]bool{}
				a.known[values[varHost]] = list
			}
			list[key] = true
		}
		return nil
	})
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

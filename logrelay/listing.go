package logrelay

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// listing is what there is of ours below the folder of the files.
type listing struct {
	away  []awayFile // the oldest first
	past  []string   // files that are written, but no more: see place
	empty []string   // folders, those within others first
	half  []string   // what a crash left of files that were being compressed: ".HOST.log.TIME.zst." and a number
}

// awayFile is a file that was put away.
type awayFile struct {
	name  string // below the folder, as all names here
	file  string // what it was called while it was written
	at    string // when it was put away, as its name has it
	group *awayGroup
}

// awayGroup is files that are counted together.
type awayGroup struct {
	count   int
	earlier bool
}

// list looks through the folder, and those in it that files of ours can be in.
// Links are not followed.
func (r *rotator) list(root *os.Root) (l listing, err error) {
	var unread failures
	now, groups := r.now(), map[string]*awayGroup{}
	inside := map[string]int{} // how much is in folders of ours
	walked := fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, failed error) error {
		switch {
		case failed != nil && errors.Is(failed, fs.ErrNotExist):
			return nil // it went meanwhile
		case failed != nil:
			unread.add(failed)
			delete(inside, name) // nobody knows whether it is empty
			return nil
		case name == ".":
			return nil
		}
		if dir := path.Dir(name); dir != "." {
			inside[dir]++
		}
		switch {
		case e.IsDir() && !r.layout.folder(name):
			return fs.SkipDir
		case e.IsDir():
			inside[name] += 0
		case e.Type().IsRegular():
			r.sort(name, now, groups, &l)
		}
		return nil
	})
	for dir, n := range inside {
		if n == 0 {
			l.empty = append(l.empty, dir)
		}
	}
	slices.SortFunc(l.away, func(a, b awayFile) int { return cmp.Or(strings.Compare(a.at, b.at), strings.Compare(a.name, b.name)) })
	unread.add(walked)
	return l, unread.err()
}

// sort puts a file where it belongs in the listing.
func (r *rotator) sort(name string, now time.Time, groups map[string]*awayGroup, l *listing) {
	dir, base := path.Split(name)
	if strings.HasPrefix(base, ".") {
		base = strings.TrimRight(base[1:], "0123456789")
		away, dotted := strings.CutSuffix(base, ".")
		if file, _, ok := cutRotated(away); ok && dotted && strings.HasSuffix(away, zstSuffix) && r.owns(dir+file, now) {
			l.half = append(l.half, name)
		}
		return
	}
	if strings.HasSuffix(base, fileSuffix) {
		if p, ok := r.layout.place(name, now); ok && p.past {
			l.past = append(l.past, name)
		}
		return
	}
	file, at, ok := cutRotated(base)
	if !ok {
		return
	}
	p, ok := r.layout.place(dir+file, now)
	if !ok {
		return
	}
	g := groups[p.group]
	if g == nil {
		g = &awayGroup{earlier: p.earlier}
		groups[p.group] = g
	}
	g.count++
	l.away = append(l.away, awayFile{name: name, file: dir + file, at: at, group: g})
}

func (r *rotator) owns(file string, now time.Time) bool {
	_, ok := r.layout.place(file, now)
	return ok
}

// look is list with the folder opened. Where there is no folder, nothing was
// written yet.
func (r *rotator) look(then func(root *os.Root, l *listing) error) error {
	root, err := os.OpenRoot(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := r.list(root)
	return errors.Join(err, then(root, &l), root.Close())
}

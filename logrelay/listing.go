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
	past  []pastFile // files that are written, but no more, and had no line for long enough
	idle  []idleFile // files that are written, and had no line for an hour
	empty []string   // folders of ours that have been so for a day
	half  []string   // what a crash left of files that were being compressed: ".HOST.log.TIME.zst." and a number
	ahead map[string]aheadFile
	owner int  // that files are given to, -1 if to nobody
	part  bool // something could not be read: nothing is said of what is not there
}

// awayFile is a file that was put away.
type awayFile struct {
	name  string    // below the folder, as all names here
	at    time.Time // when it was put away, as its name has it
	since time.Time // at, or since when it was seen where that is still to come
	group *awayGroup
}

// aheadFile is a file that has a time which is still to come.
type aheadFile struct{ first, at time.Time } // when it was first seen to have that

// since is when a file was put away or last changed, or where a clock that was wrong
// left it a time that is still to come, when it was first seen so.
func (r *rotator) since(name string, at, now time.Time, l *listing) time.Time {
	if !at.After(now) {
		return at
	}
	a := r.ahead[name]
	if !a.at.Equal(at) { // on a file system with a clock of its own, it may have changed
		a = aheadFile{now, at}
	}
	l.ahead[name] = a
	return a.first
}

// awayGroup is files that are counted together.
type awayGroup struct {
	count   int
	newest  time.Time // when the last one was put away
	earlier bool
	written bool // there is one that is written
}

type idleFile struct {
	pastFile
	idle time.Duration // since its last line
}

// list looks through the folder, and those in it that files of ours can be in.
// Links are not followed.
func (r *rotator) list(root *os.Root) (l listing, err error) {
	var unread failures
	l.ahead = map[string]aheadFile{}
	to, _ := r.owner.find() // where there is no such user, the output says so, and writes nothing
	l.owner = to.uid
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
			unread.add(r.sort(name, e, now, groups, &l))
		}
		return nil
	})
	for dir, n := range inside {
		if n == 0 {
			unread.add(r.sortEmpty(root, dir, now, &l))
		}
	}
	slices.SortFunc(l.away, older)
	unread.add(walked)
	r.ahead = l.ahead
	err = unread.err()
	l.part = err != nil
	return l, err
}

// older compares two files: what was put away by a clock that was ahead was so
// before those that have been since.
func older(a, b awayFile) int {
	if x, y := a.since.Equal(a.at), b.since.Equal(b.at); x != y {
		if y {
			return -1
		}
		return 1
	}
	return cmp.Or(a.at.Compare(b.at), strings.Compare(a.name, b.name))
}

// sort puts a file where it belongs in the listing.
func (r *rotator) sort(name string, e fs.DirEntry, now time.Time, groups map[string]*awayGroup, l *listing) error {
	dir, base := path.Split(name)
	if strings.HasPrefix(base, ".") {
		base = strings.TrimRight(base[1:], "0123456789")
		away, dotted := strings.CutSuffix(base, ".")
		if file, _, ok := cutRotated(away); ok && dotted && strings.HasSuffix(away, zstSuffix) && r.owns(dir+file, now) {
			l.half = append(l.half, name)
		}
		return nil
	}
	file, at, away := cutRotated(base)
	if !away {
		file = base
	}
	if !strings.HasSuffix(file, fileSuffix) {
		return nil
	}
	p, ok := r.layout.place(dir+file, now)
	if !ok {
		return nil
	}
	g := groups[p.group]
	if g == nil {
		g = &awayGroup{earlier: p.earlier}
		groups[p.group] = g
	}
	if !away {
		g.written = true
		return r.sortWritten(name, e, p, now, l)
	}
	g.count++
	// One may be put away while the folders are looked through, or its clock set a
	// little: it is the youngest still.
	f := awayFile{name: name, at: at, since: at, group: g}
	if now.Add(retireAfter).Before(at) {
		f.since = r.since(strings.TrimSuffix(name, zstSuffix), at, now, l)
	}
	if f.since.After(g.newest) {
		g.newest = f.since
	}
	l.away = append(l.away, f)
	return nil
}

// sortWritten sorts a file that is, or was, written. One of a host or program that
// is silent gets no line that would have it put away. What is of neither our user
// nor of the files' own is something else that is called so.
func (r *rotator) sortWritten(name string, e fs.DirEntry, p place, now time.Time, l *listing) error {
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if uid, _ := ownerOf(info); uid != r.uid && uid != l.owner {
		return nil
	}
	idle := now.Sub(r.since(name, info.ModTime(), now, l))
	f := pastFile{name, info.ModTime()}
	switch {
	case idle < retireAfter:
	case p.past || idle >= r.config.every:
		l.past = append(l.past, f)
	default:
		l.idle = append(l.idle, idleFile{f, idle})
	}
	return nil
}

// sortEmpty sorts an empty folder. Those of others are for something that we don't
// know, and so are those that were just made.
func (r *rotator) sortEmpty(root *os.Root, name string, now time.Time, l *listing) error {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if uid, _ := ownerOf(info); uid == r.uid && now.Sub(r.since(name, info.ModTime(), now, l)) >= emptyAfter {
		l.empty = append(l.empty, name)
	}
	return nil
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
	began := r.now()
	l, err := r.list(root)
	r.took = r.now().Sub(began)
	return errors.Join(err, then(root, &l), root.Close())
}

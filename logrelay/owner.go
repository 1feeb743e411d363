package logrelay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ownership is whose the per-host files are, and who may read them.
type ownership struct {
	user, group string      // names or numbers; "": those of this process
	mode        os.FileMode // 0: defaultMode as far as the umask lets it
}

// Modes of files. A file's owner appends to it, and nobody else in the world.
const (
	defaultMode os.FileMode = 0o640
	leastMode   os.FileMode = 0o600
	mostMode    os.FileMode = 0o664
)

// owner reads files.owner, files.group and files.mode. Whether there is such a
// user is not asked: the file is read on nodes that have no logs, too.
func (d *decoder) owner(raw filesSection) (o ownership) {
	for _, a := range []struct{ key, name string }{{"owner", raw.Owner}, {"group", raw.Group}} {
		if a.name != "" && !accountName(a.name) {
			d.errorf("files."+a.key, "%q is neither a name nor a number from 0 to 4294967294", a.name)
		}
	}
	o.user, o.group = raw.Owner, raw.Group
	if raw.Mode == "" {
		if o.user != "" || o.group != "" {
			o.mode = defaultMode
		}
		return o
	}
	n, err := strconv.ParseUint(raw.Mode, 8, 32)
	if o.mode = os.FileMode(n); err != nil || o.mode&leastMode != leastMode || o.mode&^mostMode != 0 {
		d.errorf("files.mode", "%q is no mode of a log file: want octal digits from \"0600\" to \"0664\": its owner reads and writes, and what others have beside is reading, and for the group writing", raw.Mode)
	}
	return o
}

// accountName tells whether a user or group can be called so.
func accountName(name string) bool {
	if name[0] >= '0' && name[0] <= '9' {
		_, ok := accountNumber(name)
		return ok
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return len(name) <= 32 && name[0] != '-' && strings.Trim(name, letters+"0123456789_.-") == ""
}

// accountNumber reads a number of a user or group; the greatest is none.
func accountNumber(text string) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return int(n), err == nil && n < 1<<32-1
}

// access is an ownership as this node has it.
type access struct {
	uid, gid int         // -1: stays as it is
	mode     os.FileMode // 0: stays as it is
}

// find looks the names up.
func (o ownership) find() (a access, err error) {
	a = access{uid: -1, gid: -1, mode: o.mode}
	a.uid, err = account(o.user, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", fmt.Errorf("logs.files.owner: %w", err)
		}
		return u.Uid, nil
	})
	if err != nil {
		return a, err
	}
	a.gid, err = account(o.group, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", fmt.Errorf("logs.files.group: %w", err)
		}
		return g.Gid, nil
	})
	return a, err
}

// account is the number of a name, or of a number; -1 for "".
func account(name string, lookup func(string) (string, error)) (int, error) {
	if name == "" {
		return -1, nil
	}
	if n, ok := accountNumber(name); ok {
		return n, nil
	}
	text, err := lookup(name)
	if err != nil {
		return -1, err
	}
	n, ok := accountNumber(text)
	if !ok {
		return -1, fmt.Errorf("%s has the number %q", name, text)
	}
	return n, nil
}

// folderMode is that of a folder of files, less the umask unless the files' mode
// is said. It is the agent's: who could write in it could put other files there.
const folderMode os.FileMode = 0o755

// folderMode lets into folders whoever may read the files: their owner, who is not
// the folders', needs what all others have.
func (a access) folderMode() os.FileMode {
	if a.uid >= 0 {
		return folderMode
	}
	read := a.mode & 0o044
	return 0o700 | read | read>>2
}

// folders makes those of a path that are missing. New ones have the files' group.
func (a access) folders(root *os.Root, dir string) error {
	for i, c := range dir + "/" {
		if c != '/' {
			continue
		}
		err := root.Mkdir(dir[:i], folderMode)
		if err == nil && a.mode != 0 {
			err = root.Chmod(dir[:i], a.folderMode())
		}
		if err == nil && a.gid >= 0 {
			err = root.Chown(dir[:i], -1, a.gid)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// makeDir makes the folder of all files, and those that it is in. Their names are
// durable then: all that is below them would go with one.
func (a access) makeDir(dir string, sync func(root *os.Root, name string) error) error {
	there := filepath.Clean(dir)
	for there != "/" {
		if _, err := os.Stat(there); err == nil {
			break
		}
		there = filepath.Dir(there)
	}
	missing, err := filepath.Rel(there, dir)
	if err != nil || missing == "." {
		return err
	}
	root, err := os.OpenRoot(there)
	if err != nil {
		return err
	}
	err = a.folders(root, missing)
	for made := missing; err == nil && made != "."; made = path.Dir(made) {
		err = sync(root, path.Dir(made))
	}
	return errors.Join(err, root.Close())
}

// open opens a file to append to, or makes it, and gives it its owner and mode.
// A new one has nobody else read it before. Folders that are missing are made.
func (a access) open(root *os.Root, name string) (*os.File, os.FileInfo, error) {
	mode := defaultMode
	if a.mode != 0 {
		mode = leastMode
	}
	file, err := a.openIn(root, name, mode)
	if err != nil {
		return nil, nil, err
	}
	info, err := regular(file)
	if err == nil {
		err = a.give(file, info)
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, info, nil
}

// regular is what is known of a file that was just opened. One that is none, as a
// pipe that somebody reads, is obstructed: see there.
func regular(file *os.File) (os.FileInfo, error) {
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", file.Name())
	}
	return info, err
}

// openIn makes the folders of a file, too. The rotator removes empty ones beside:
// once a minute, so that the second try is the last one needed.
func (a access) openIn(root *os.Root, name string, mode os.FileMode) (file *os.File, err error) {
	for range 3 {
		file, err = root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, mode) // else a pipe waits for its reader
		dir := path.Dir(name)
		if !errors.Is(err, fs.ErrNotExist) || dir == "." {
			return file, err
		}
		if err := a.folders(root, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return file, err
}

// give changes what is not as it should be.
func (a access) give(file *os.File, info os.FileInfo) error {
	if a.mode != 0 && info.Mode().Perm() != a.mode {
		// Before the owner changes: who gives a file away may no longer.
		if err := file.Chmod(a.mode); err != nil {
			return err
		}
	}
	uid, gid := ownerOf(info)
	if (a.uid < 0 || a.uid == uid) && (a.gid < 0 || a.gid == gid) {
		return nil
	}
	return file.Chown(a.uid, a.gid)
}

func ownerOf(info os.FileInfo) (uid, gid int) {
	s := info.Sys().(*syscall.Stat_t) // Linux
	return int(s.Uid), int(s.Gid)
}

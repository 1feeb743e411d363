package logrelay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"holdfast/internal/durable"
)

// undo remembers how long files were when their output's cursor last moved.
// What was written since is cut off before it is written again: after a crash,
// lines are in the files once.
//
// It is a file beside the cursor, named after it, of entries: length of the
// path below the folder (uvarint), path, size[8], CRC-32C[4]. The path is the
// file's, whatever the template is when it is read. An entry whose path begins
// with a slash is the folder of those behind it; its size means nothing. An entry
// is durable before what it undoes is written.
type undo struct {
	dir    string // where it is
	folder string // of the files
	cursor uint64
	file   *os.File
	told   bool // the folder has been queued since this was opened
	sizes  map[string]int64
	others map[string]map[string]int64 // sizes in folders that were the files' before, by folder
	queue  []byte
}

const (
	undoPrefix  = "undo-"
	maxUndoPath = 4096 // PATH_MAX: of a folder
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (u *undo) path() string {
	return filepath.Join(u.dir, fmt.Sprintf("%s%d", undoPrefix, u.cursor))
}

// openUndo reads what is to be undone at that cursor; those of other cursors go.
// folder is where files are written now.
func openUndo(dir, folder string, cursor uint64) (*undo, error) {
	u := &undo{dir: dir, folder: filepath.Clean(folder), cursor: cursor, sizes: map[string]int64{}}
	stale, err := filepath.Glob(filepath.Join(dir, undoPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range stale {
		if path != u.path() {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
		}
	}
	b, err := os.ReadFile(u.path())
	if errors.Is(err, fs.ErrNotExist) {
		return u, nil
	}
	if err != nil {
		return nil, err
	}
	all, sound := parseUndo(b, u.folder)
	u.sizes = all[u.folder]
	delete(all, u.folder)
	if u.others = all; sound < len(b) {
		return u, u.cut(sound)
	}
	return u, nil
}

// cut takes a torn end away: an entry behind it would never be read.
func (u *undo) cut(sound int) error {
	file, err := os.OpenFile(u.path(), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(int64(sound)), file.Sync(), file.Close())
}

// parseUndo reads entries up to the end, or up to a torn one: what that undoes
// was not written. sizes are by folder; those in front of any are of the one that
// is given. sound is how many bytes it read.
func parseUndo(b []byte, folder string) (sizes map[string]map[string]int64, sound int) {
	sizes = map[string]map[string]int64{folder: {}}
	for all := len(b); ; sound = all - len(b) {
		length, n := binary.Uvarint(b)
		if n <= 0 || length > maxUndoPath || uint64(len(b)-n) < length+12 {
			break
		}
		end := n + int(length) + 8
		if crc32.Checksum(b[:end], castagnoli) != binary.LittleEndian.Uint32(b[end:]) {
			break
		}
		name := string(b[n : n+int(length)])
		if filepath.IsAbs(name) {
			if folder = name; sizes[folder] == nil {
				sizes[folder] = map[string]int64{}
			}
		} else if _, ok := sizes[folder][name]; !ok {
			sizes[folder][name] = int64(binary.LittleEndian.Uint64(b[end-8:]))
		}
		b = b[end+4:]
	}
	return sizes, sound
}

// apply cuts the files off where they ended, in whatever folder they are. root is
// the one of now: of a file that is shorter or gone there, the entry says so from
// then on, since what is written into it now would else stay when it is undone.
func (u *undo) apply(root *os.Root) error {
	if len(u.sizes)+len(u.others) == 0 {
		return nil
	}
	if err := u.applyIn(root, u.sizes); err != nil {
		return err
	}
	for folder, sizes := range u.others {
		root, err := os.OpenRoot(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(u.applyIn(root, sizes), root.Close())
		}
		if err != nil {
			return fmt.Errorf("in %s, where files were written before: %w", folder, err)
		}
	}
	return u.replace()
}

// replace writes what is known in the place of what was read: that may never have
// reached the disk, if the process before ended its run for that.
func (u *undo) replace() error {
	for folder, sizes := range u.others {
		u.addAll(folder, sizes)
	}
	u.addAll(u.folder, u.sizes)
	err := durable.Replace(u.path(), u.queue, 0o600)
	u.queue, u.told = nil, true
	return err
}

// addAll queues a folder, and the entries of it.
func (u *undo) addAll(folder string, sizes map[string]int64) {
	u.add(folder, 0)
	for name, size := range sizes {
		u.add(name, size)
	}
}

func (u *undo) applyIn(root *os.Root, sizes map[string]int64) error {
	for name, size := range sizes {
		if !filepath.IsLocal(name) || !strings.HasSuffix(name, fileSuffix) || size < 0 {
			return fmt.Errorf("%s: entry %q %d is none of ours", u.path(), name, size)
		}
		file, err := root.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		var info os.FileInfo
		if err == nil {
			if info, err = regular(file); err != nil {
				err = errors.Join(err, file.Close())
			}
		}
		if err != nil && (errors.Is(err, fs.ErrNotExist) || obstructed(err)) {
			// What was written there is gone. The entry goes as well: 0 would take all
			// of a file that somebody puts back.
			delete(sizes, name)
			continue
		}
		if errors.Is(err, fs.ErrPermission) {
			if there, failed := root.Stat(name); failed == nil && there.Size() <= size {
				continue // nothing is to be cut off
			}
		}
		if err != nil {
			return err
		}
		if info.Size() > size {
			err = errors.Join(file.Truncate(size), file.Sync())
		} else {
			sizes[name] = info.Size()
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("cut off what was written since the last checkpoint: %w", err)
		}
	}
	return nil
}

// note queues an entry, unless there is one.
func (u *undo) note(name string, size int64) {
	if u.has(name) {
		return
	}
	if !u.told {
		u.told = true
		u.add(u.folder, 0)
	}
	u.sizes[name] = size
	u.add(name, size)
}

// add queues an entry.
func (u *undo) add(name string, size int64) {
	from := len(u.queue)
	u.queue = binary.AppendUvarint(u.queue, uint64(len(name)))
	u.queue = append(u.queue, name...)
	u.queue = binary.LittleEndian.AppendUint64(u.queue, uint64(size))
	u.queue = binary.LittleEndian.AppendUint32(u.queue, crc32.Checksum(u.queue[from:], castagnoli))
}

// has tells whether there is an entry of a file.
func (u *undo) has(name string) bool {
	_, ok := u.sizes[name]
	return ok
}

// sync makes the queued entries durable.
func (u *undo) sync() error {
	if len(u.queue) == 0 {
		return nil
	}
	if u.file == nil {
		file, err := os.OpenFile(u.path(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		u.file = file
		if err := durable.SyncDir(u.dir); err != nil {
			return err
		}
	}
	if _, err := u.file.Write(u.queue); err != nil {
		return err
	}
	u.queue = u.queue[:0]
	return u.file.Sync()
}

// moved forgets everything: the cursor moved, and what was written stays.
func (u *undo) moved(cursor uint64) error {
	err := u.close()
	if e := os.Remove(u.path()); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	*u = undo{dir: u.dir, folder: u.folder, cursor: cursor, sizes: map[string]int64{}}
	return err
}

func (u *undo) close() error {
	if u.file == nil {
		return nil
	}
	err := u.file.Close()
	u.file = nil
	return err
}

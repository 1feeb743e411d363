package logrelay

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"syscall"

	"holdfast/internal/kernel/filesystem"
)

// syncs makes durable what the files' output wrote.
type syncs struct {
	folder func(root *os.Root, name string) error // the names in a folder
	file   func(file *os.File) error
	all    func(folder *os.File) error // of its file system; it was opened before what is synced was written
}

func kernelSyncs() syncs { return syncs{syncFolder, (*os.File).Sync, filesystem.Sync} }

// syncNames makes the names in folders durable, of each once. Who removed a folder
// by hand did that to the files in it, too.
func (o *files) syncNames(folders map[string]bool) (err error) {
	if len(folders) >= manyFiles && o.together(folders) {
		return o.syncs.all(o.folder)
	}
	for dir := range folders {
		if failed := o.syncs.folder(o.root, dir); failed != nil && !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// together tells whether folders are all of the file system of the files' own.
func (o *files) together(folders map[string]bool) bool {
	for dir := range folders {
		info, err := o.root.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || info.Sys().(*syscall.Stat_t).Dev != o.device { // Linux
			return false
		}
	}
	return true
}

// errRemoved is a file that somebody removed while it was written. The output
// begins anew where the cursor stands: what came since is written into another.
var errRemoved = errors.New("it was removed while it was written, and what came since the last checkpoint is written anew")

// manyFiles are as many files, or folders, as are no longer synced one by one: each waits for the
// disk, while all of the file system, with what others wrote there, is one wait.
const manyFiles = 64

// syncFiles makes durable what was written into files, each of which has a name.
func (o *files) syncFiles(list iter.Seq[*hostFile]) error {
	var unsynced []*hostFile
	together := true
	for f := range list {
		if !f.unsynced {
			continue
		}
		info, err := f.file.Stat()
		if err != nil {
			return err
		}
		s := info.Sys().(*syscall.Stat_t) // Linux
		if s.Nlink == 0 {
			return fmt.Errorf("%s: %w", f.name, errRemoved)
		}
		unsynced = append(unsynced, f)
		together = together && s.Dev == o.device // no other is mounted there
	}
	if together = together && len(unsynced) >= manyFiles; together {
		if err := o.syncs.all(o.folder); err != nil {
			return err
		}
	}
	for _, f := range unsynced {
		if !together {
			if err := o.syncs.file(f.file); err != nil {
				return err
			}
		}
		f.unsynced = false
	}
	return nil
}

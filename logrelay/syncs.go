package logrelay

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// syncs makes durable what the files' output wrote.
type syncs struct {
	folder func(root *os.Root, name string) error // the names in a folder
	file   func(file *os.File) error
	all    func(folder *os.File) error // of its file system, by syncfs(2)
}

func kernelSyncs() syncs { return syncs{syncFolder, (*os.File).Sync, syncAll} }

// syncAll waits for all of a file system. The folder was opened before what is
// synced was written: the kernel (from 5.8 on) says if any of that failed since.
func syncAll(folder *os.File) error {
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: folder.Name(), Err: err}
	}
	return nil
}

// syncNames makes the names in folders durable, of each once. Who removed a folder
// by hand did that to the files in it, too.
func (o *files) syncNames(folders map[string]bool) (err error) {
	for dir := range folders {
		if failed := o.syncs.folder(o.root, dir); failed != nil && !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// errRemoved is a file that somebody removed while it was written. The output
// begins anew where the cursor stands: what came since is written into another.
var errRemoved = errors.New("it was removed while it was written, and what came since the last checkpoint is written anew")

// manyFiles are as many as are no longer synced one by one: each waits for the
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

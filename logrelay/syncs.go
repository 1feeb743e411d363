package logrelay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// syncs makes durable what the files' output wrote.
type syncs struct {
	folder func(root *os.Root, name string) error // the names in a folder
}

func kernelSyncs() syncs { return syncs{folder: syncFolder} }

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

// sync makes durable what was written into a file that has a name.
func (f *hostFile) sync() error {
	if !f.unsynced {
		return nil
	}
	info, err := f.file.Stat()
	if err == nil && info.Sys().(*syscall.Stat_t).Nlink == 0 { // Linux
		err = errRemoved
	}
	if err == nil {
		err = f.file.Sync()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	f.unsynced = false
	return nil
}

package logrelay

import (
	"errors"
	"io/fs"
	"os"
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

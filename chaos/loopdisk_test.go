package chaos_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"holdfast/lab/site"
)

// loopDisk is a small ext4 file system that is a node's disk for its data.
type loopDisk struct {
	t      *testing.T
	image  string
	dir    string
	frozen bool
}

func newDisks(t *testing.T, n int) (list []*loopDisk) {
	t.Helper()
	for i := range n {
		d := &loopDisk{t: t, image: filepath.Join(t.TempDir(), fmt.Sprintf("disk%d", i))}
		if err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, 128<<20)); err != nil {
			t.Fatal(err)
		}
		if err := command("mkfs.ext4", "-q", "-F", d.image); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.remove)
		list = append(list, d)
	}
	return list
}

func command(args ...string) error {
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return nil
}

// insert gives the disk to a node, whose agent must not run yet.
func (d *loopDisk) insert(n *site.Node) {
	d.t.Helper()
	if err := n.PowerOff(); err != nil {
		d.t.Fatal(err)
	}
	d.dir = filepath.Join(n.Host.Disk(), "var/lib/holdfast")
	if err := errors.Join(os.MkdirAll(d.dir, 0o700), command("mount", "-o", "loop", d.image, d.dir)); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.remove) // before the lab removes what is below
	if err := n.Host.PowerOn(); err != nil {
		d.t.Fatal(err)
	}
}

// remove is for the end, whatever happened: other hosts may see the mount.
func (d *loopDisk) remove() {
	_ = d.thaw()
	if d.dir != "" {
		if err := command("umount", "--lazy", d.dir); err != nil {
			d.t.Error(err)
		}
		d.dir = ""
	}
}

func (d *loopDisk) freeze() error {
	d.frozen = true
	return command("fsfreeze", "--freeze", d.dir)
}

func (d *loopDisk) thaw() error {
	if !d.frozen {
		return nil
	}
	d.frozen = false
	return command("fsfreeze", "--unfreeze", d.dir)
}

func (d *loopDisk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill leaves 8 MiB, half of what is too little.
func (d *loopDisk) fill() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &st); err != nil {
		return err
	}
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	defer f.Close()
	return syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-8<<20)
}

func (d *loopDisk) empty() error { return os.Remove(d.ballast()) }

package lab

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// privateDirs are empty in every host and never shared with the machine.
// /dev, /proc and /sys are made apart.
func privateDirs() []string {
	return []string{"/run", "/tmp", "/root", "/var/log", "/var/tmp"}
}

// diskFileSystems are those that a machine's own files are on. What else is
// mounted below its root (proc, cgroups, containers' overlays) is not shown.
func diskFileSystems() []string {
	return []string{"9p", "btrfs", "ext2", "ext3", "ext4", "f2fs", "nfs", "nfs4", "virtiofs", "xfs", "zfs"}
}

// makeRoot gives this process, the first of its mount namespace, a root of its
// own. Nothing is written to the machine's file systems: they are the lower
// layers of overlays whose upper layers are one tmpfs, seen by this host only.
func makeRoot(b bootMessage) error {
	if strings.ContainsAny(b.Root, `,:\`) {
		return fmt.Errorf("the lab's directory %q has a character that overlayfs can't have in its options", b.Root)
	}
	// Or our mounts would appear on the machine, whose / is shared.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	submounts, err := diskMounts()
	if err != nil {
		return err
	}
	if err := mount("lab-"+b.Name, b.Root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	root := filepath.Join(b.Root, "root")
	if err := overlay("/", root, filepath.Join(b.Root, "layers", "root")); err != nil {
		return err
	}
	for i, m := range submounts {
		if underAny(m, append(privateDirs(), "/dev", "/proc", "/sys")...) {
			continue
		}
		if err := showMount(m, root, filepath.Join(b.Root, "layers", fmt.Sprint(i))); err != nil {
			return err
		}
	}
	for _, step := range []func(string) error{mountKernel, makeDev, makePrivate} {
		if err := step(root); err != nil {
			return err
		}
	}
	if err := bindDisk(root, b); err != nil {
		return err
	}
	for _, path := range b.Expose {
		if err := expose(path, root); err != nil {
			return err
		}
	}
	if err := identity(root, b); err != nil {
		return err
	}
	return pivot(root)
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", cmp.Or(fstype, source), target, err)
	}
	return nil
}

// overlay shows lower at target, writable; what is written goes to layers.
func overlay(lower, target, layers string) error {
	upper, work := filepath.Join(layers, "upper"), filepath.Join(layers, "work")
	for _, dir := range []string{upper, work, target} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	return mount("overlay", target, "overlay", 0, options)
}

// showMount shows a file system that is mounted below /: writable, or where
// overlayfs doesn't take it (by its kind, or its name), read-only.
func showMount(dir, root, layers string) error {
	target := filepath.Join(root, dir)
	if !strings.ContainsAny(dir, `,:\`) && overlay(dir, target, layers) == nil {
		return nil
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return bindReadOnly(dir, target)
}

// diskMounts returns the directories below / on which a disk's file system is
// mounted, parents first.
func diskMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts, err := parseMounts(f)
	if err != nil {
		return nil, fmt.Errorf("read /proc/self/mountinfo: %w", err)
	}
	return slices.DeleteFunc(mounts, func(dir string) bool {
		info, err := os.Stat(dir)
		return err != nil || !info.IsDir()
	}), nil
}

// parseMounts reads the format of proc(5), mountinfo.
func parseMounts(r io.Reader) ([]string, error) {
	var dirs []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(rest) < 1 {
			return nil, fmt.Errorf("a line %q", lines.Text())
		}
		dir := unescapeMount(fields[4])
		if dir == "/" || !slices.Contains(diskFileSystems(), rest[0]) || slices.Contains(dirs, dir) {
			continue
		}
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	return dirs, lines.Err()
}

// unescapeMount undoes the kernel's octal escapes of space, tab, newline and
// backslash.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func underAny(path string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return path == dir || strings.HasPrefix(path, dir+"/")
	})
}

// mountKernel mounts proc and sysfs of the host's namespaces. What in them
// belongs to the whole machine is read-only.
func mountKernel(root string) error {
	proc, sys := filepath.Join(root, "proc"), filepath.Join(root, "sys")
	if err := mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount("sysfs", sys, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	for _, name := range []string{"sysrq-trigger", "sys/kernel", "sys/vm", "sys/fs"} {
		err := bindReadOnly(filepath.Join(proc, name), filepath.Join(proc, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func bindReadOnly(source, target string) error {
	if err := mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// makeDev makes a /dev with nothing of the machine in it: a shared one would
// leak /dev/log, terminals and disks.
func makeDev(root string) error {
	dev := filepath.Join(root, "dev")
	if err := mount("dev", dev, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"pts", "shm", "net", "mqueue"} {
		if err := os.Mkdir(filepath.Join(dev, dir), 0o755); err != nil {
			return err
		}
	}
	nodes := []struct {
		name         string
		major, minor uint32
	}{
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9},
		{"tty", 5, 0}, {"net/tun", 10, 200}, {"fuse", 10, 229},
	}
	for _, n := range nodes {
		path := filepath.Join(dev, n.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return fmt.Errorf("mknod %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // whatever the umask
			return err
		}
	}
	if err := mount("devpts", filepath.Join(dev, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return err
	}
	if err := mount("shm", filepath.Join(dev, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	for _, l := range [][2]string{
		{"pts/ptmx", "ptmx"}, {"/proc/self/fd", "fd"},
		{"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
	} {
		if err := os.Symlink(l[0], filepath.Join(dev, l[1])); err != nil {
			return err
		}
	}
	return nil
}

func makePrivate(root string) error {
	for _, dir := range privateDirs() {
		mode := "mode=755"
		if strings.HasSuffix(dir, "/tmp") {
			mode = "mode=1777"
		}
		target := filepath.Join(root, dir)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, mode); err != nil {
			return err
		}
	}
	return os.Mkdir(filepath.Join(root, "run/lock"), 0o1777)
}

// bindDisk mounts the persistent directories, which survive a power cut.
func bindDisk(root string, b bootMessage) error {
	for _, dir := range b.Persist {
		source, target := filepath.Join(b.Disk, dir), filepath.Join(root, dir)
		for _, d := range []string{source, target} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// expose shows a file or directory of the machine at the same path, read-only.
func expose(path, root string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("expose: %w", err)
	}
	target := filepath.Join(root, path)
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		var f *os.File
		if f, err = os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("expose %s: %w", path, err)
	}
	return bindReadOnly(path, target)
}

// identity gives the host its name and the files in /etc that tell machines
// apart. The machine's own may be links into /run, so they are replaced.
func identity(root string, b bootMessage) error {
	if err := unix.Sethostname([]byte(b.Name)); err != nil {
		return fmt.Errorf("set the host name %q: %w", b.Name, err)
	}
	id := sha256.Sum256([]byte("holdfast lab host " + b.Name))
	files := map[string]string{
		"hostname":    b.Name + "\n",
		"hosts":       b.Hosts,
		"machine-id":  fmt.Sprintf("%x\n", id[:16]),
		"resolv.conf": "# This host asks nobody until the test writes a nameserver here.\n",
		// The machine's may ask services that a host doesn't run.
		"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
	}
	for name, text := range files {
		path := filepath.Join(root, "etc", name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes root the root of the namespace and forgets the machine's.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	// Stacking the old root under the new one needs no directory for it
	// (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the machine's root: %w", err)
	}
	return os.Chdir("/")
}

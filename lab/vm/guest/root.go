package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/lab/vm/channel"
)

const (
	hostDir = "/host"    // the host's root, read-only
	upper   = "/upper"   // a tmpfs: what is written
	newRoot = "/newroot" // both together
)

// boot reads what this machine is and makes it so.
func boot(conn *channel.Conn) error {
	f, err := conn.Receive()
	if err != nil {
		return fmt.Errorf("read what to boot: %w", err)
	}
	var m channel.BootMessage
	if err := json.Unmarshal(f.Data, &m); err != nil {
		return fmt.Errorf("read what to boot: %w", err)
	}
	if err := makeRoot(m); err != nil {
		return err
	}
	if err := os.Setenv("PATH", path); err != nil { // for exec.LookPath
		return err
	}
	if err := identity(m.Name); err != nil {
		return err
	}
	for _, file := range m.Modules {
		if err := loadModule(filepath.Join(kernelDir(m), file)); err != nil {
			return err
		}
	}
	return network(m.NICs)
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", cmp.Or(fstype, source), target, err)
	}
	return nil
}

// makeRoot shows the host's root, writable: what is written stays in memory.
func makeRoot(m channel.BootMessage) error {
	// loose: nobody changes the files while the machine looks.
	if err := mount("root", hostDir, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=512000,cache=loose"); err != nil {
		return err
	}
	if err := mount("upper", upper, "tmpfs", 0, "mode=755,size=75%"); err != nil {
		return err
	}
	for _, dir := range []string{upper + "/files", upper + "/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/files,workdir=%s/work", hostDir, upper, upper)
	if err := mount("root", newRoot, "overlay", 0, options); err != nil {
		return err
	}
	// The host's files that are shown as they are: opened before its root is
	// out of sight.
	binds, err := openBinds(m)
	if err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	// The initrd's root can't be left by pivot_root (pivot_root(2)).
	if err := errors.Join(unix.Chdir(newRoot), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := mountOwn(); err != nil {
		return err
	}
	return showBinds(binds)
}

// bind shows an open file or directory at a place.
type bind struct {
	file *os.File
	at   string
}

func openBinds(m channel.BootMessage) ([]bind, error) {
	var binds []bind
	add := func(source, at string) error {
		fd, err := unix.Open(filepath.Join(hostDir, source), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("the host's %s: %w", source, err)
		}
		binds = append(binds, bind{os.NewFile(uintptr(fd), source), at})
		return nil
	}
	if err := add(m.Kernel, kernelDir(m)); err != nil {
		return nil, err
	}
	for _, path := range m.Expose {
		if !hidden(path) {
			continue // it is seen through the root
		}
		if err := add(path, path); err != nil {
			return nil, err
		}
	}
	return binds, nil
}

// kernelDir is where the machine sees its kernel's modules.
func kernelDir(m channel.BootMessage) string { return "/lib/modules/" + filepath.Base(m.Kernel) }

func showBinds(binds []bind) error {
	for _, b := range binds {
		defer b.file.Close()
		info, err := b.file.Stat()
		if err != nil {
			return fmt.Errorf("show %s: %w", b.at, err)
		}
		if !info.IsDir() {
			if err := makeFile(b.at); err != nil {
				return err
			}
		} else if err := os.MkdirAll(b.at, 0o755); err != nil {
			return err
		}
		source := fmt.Sprintf("/proc/self/fd/%d", b.file.Fd())
		if err := unix.Mount(source, b.at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show %s: %w", b.at, err)
		}
	}
	return nil
}

func makeFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// ownMount is a file system that the machine has for itself: nothing of what
// runs on the host is to be seen in it.
type ownMount struct{ fstype, dir, options string }

// privateDirs hide what the host has there.
func privateDirs() []ownMount {
	return []ownMount{
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/root", "mode=700"}, // a shell's start-up files there cost seconds
		{"tmpfs", "/var/log", "mode=755"},
		{"tmpfs", "/var/tmp", "mode=1777"},
	}
}

// hidden says whether a file of the host is in a private directory.
func hidden(path string) bool {
	return slices.ContainsFunc(privateDirs(), func(m ownMount) bool { return strings.HasPrefix(path, m.dir+"/") })
}

func mountOwn() error {
	for _, m := range append(privateDirs(),
		ownMount{"devpts", "/dev/pts", "ptmxmode=0666,mode=620"},
		ownMount{"tmpfs", "/dev/shm", "mode=1777"},
		ownMount{"cgroup2", "/sys/fs/cgroup", ""},
	) {
		if err := mount(m.fstype, m.dir, m.fstype, 0, m.options); err != nil {
			return err
		}
	}
	for _, link := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
	} {
		if err := os.Symlink(link[0], link[1]); err != nil {
			return err
		}
	}
	return errors.Join(os.Mkdir("/run/lock", 0o777|fs.ModeSticky), os.Mkdir("/run/netns", 0o755))
}

// identity gives the machine its name and the files in /etc that tell machines
// apart; the host's may be links into /run.
func identity(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the host name %q: %w", name, err)
	}
	id := sha256.Sum256([]byte("holdfast lab machine " + name))
	for file, text := range map[string]string{
		"hostname":    name + "\n",
		"hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
		"machine-id":  fmt.Sprintf("%x\n", id[:16]),
		"resolv.conf": "# This machine asks nobody until the test writes a nameserver here.\n",
		// The host's may ask services that do not run here.
		"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\n",
	} {
		path := filepath.Join("/etc", file)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func network(nics []channel.NIC) error {
	// Addresses are usable at once, and come from the test only.
	for _, name := range []string{"accept_dad", "accept_ra", "dad_transmits"} {
		for _, conf := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+conf+"/"+name, []byte("0"), 0); err != nil {
				return err
			}
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	for _, nic := range nics {
		if err := configure(nic); err != nil {
			return fmt.Errorf("interface %s: %w", nic.Name, err)
		}
	}
	return nil
}

func configure(nic channel.NIC) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	var link netlink.Link
	for _, l := range links {
		if strings.EqualFold(l.Attrs().HardwareAddr.String(), nic.MAC) {
			link = l
		}
	}
	if link == nil {
		return fmt.Errorf("there is none with the hardware address %s", nic.MAC)
	}
	if link.Attrs().Name != nic.Name {
		if err := netlink.LinkSetName(link, nic.Name); err != nil {
			return fmt.Errorf("rename %s: %w", link.Attrs().Name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, text := range nic.Addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s: %w", text, err)
		}
	}
	return awaitRunning(nic.Name)
}

// awaitRunning waits until the kernel's link watch made the interface usable:
// what is sent before that vanishes.
func awaitRunning(name string) error {
	for range 6000 { // of at least 5 ms
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp || link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
			return nil // up, or its cable is pulled
		}
		pause()
	}
	return errors.New("it doesn't come up")
}

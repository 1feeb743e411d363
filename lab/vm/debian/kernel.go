// Package debian gets Debian's own kernel for the virtual machines of the lab:
// downloaded with apt-get and unpacked into a cache, installed nowhere.
package debian

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// metaPackage depends on the newest kernel of the release.
const metaPackage = "linux-image-amd64"

// downloadTime is the most that a download may take, apt's lists included.
const downloadTime = 5 * time.Minute

// Kernel is an unpacked kernel package.
type Kernel struct {
	Dir     string // the package's files, as far as machines need them
	Package string // such as linux-image-6.1.0-42-amd64
	Version string // of the package
	Release string // what uname -r says
}

// Image is the file that the emulator starts.
func (k *Kernel) Image() string { return filepath.Join(k.Dir, "vmlinux") }

// ModuleDir is lib/modules/RELEASE.
func (k *Kernel) ModuleDir() string { return filepath.Join(k.Dir, "lib/modules", k.Release) }

// CacheDir is where downloads and builds for virtual machines are kept:
// $LAB_CACHE, or holdfast-lab in the user's cache directory.
func CacheDir() (string, error) {
	dir := os.Getenv("LAB_CACHE")
	if dir == "" {
		parent, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("%w; or set LAB_CACHE to a directory", err)
		}
		dir = filepath.Join(parent, "holdfast-lab")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// Get returns the kernel that apt would install: out of the cache, or
// downloaded into it, which takes some seconds. The cache's key has the
// package's version, so a security update brings a new kernel; where apt knows
// of none (a machine without package lists or network), the newest in the cache
// is used. Two processes that need it download it once.
func Get(ctx context.Context) (*Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, fmt.Errorf("the kernel for virtual machines: %w", err)
	}
	unlock, err := Lock(filepath.Join(cache, "kernel.lock"))
	if err != nil {
		return nil, fmt.Errorf("the kernel for virtual machines: %w", err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, downloadTime)
	defer cancel()
	k, err := get(ctx, cache)
	if err != nil {
		return nil, fmt.Errorf("the kernel for virtual machines: %w", err)
	}
	return k, nil
}

func get(ctx context.Context, cache string) (*Kernel, error) {
	if k := asked(cache); k != nil {
		return k, nil
	}
	pkg, version, err := candidate(ctx)
	if err == nil {
		dir := filepath.Join(cache, "kernel", pkg+"_"+strings.ReplaceAll(version, ":", "%3a"))
		if _, openErr := open(dir); openErr != nil {
			err = download(ctx, pkg, version, dir)
		}
		if err == nil {
			err = replace(filepath.Join(cache, answerFile), []byte(filepath.Base(dir)))
		}
		if err == nil {
			return open(dir)
		}
	}
	if k := newest(cache); k != nil {
		return k, nil
	}
	return nil, err
}

// answerFile has what apt said last: to ask it takes two seconds.
const answerFile = "kernel.current"

// listsDir changes when apt fetches package lists that are new.
const listsDir = "/var/lib/apt/lists"

// asked is the kernel that apt named since its lists were fetched, nil when it
// wasn't asked.
func asked(cache string) *Kernel {
	file := filepath.Join(cache, answerFile)
	answer, err := os.Stat(file)
	if err != nil {
		return nil
	}
	lists, err := os.Stat(listsDir)
	if err != nil || !lists.ModTime().Before(answer.ModTime()) {
		return nil
	}
	name, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	k, err := open(filepath.Join(cache, "kernel", filepath.Base(string(name))))
	if err != nil {
		return nil
	}
	return k
}

// open opens a directory of the cache. Its name is given to it only when it is
// complete.
func open(dir string) (*Kernel, error) {
	pkg, version, _ := strings.Cut(filepath.Base(dir), "_")
	releases, err := os.ReadDir(filepath.Join(dir, "lib/modules"))
	if err != nil {
		return nil, err
	}
	if len(releases) != 1 {
		return nil, fmt.Errorf("%s has %d releases in lib/modules, want 1", dir, len(releases))
	}
	k := &Kernel{Dir: dir, Package: pkg, Version: strings.ReplaceAll(version, "%3a", ":"), Release: releases[0].Name()}
	_, err = os.Stat(k.Image())
	return k, err
}

// newest is the kernel that was downloaded last, nil when there is none.
func newest(cache string) *Kernel {
	dirs, err := filepath.Glob(filepath.Join(cache, "kernel", "linux-image-*"))
	if err != nil {
		return nil
	}
	age := func(dir string) time.Time {
		info, err := os.Stat(dir)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(dirs, func(a, b string) int { return age(b).Compare(age(a)) })
	for _, dir := range dirs {
		if k, err := open(dir); err == nil {
			return k
		}
	}
	return nil
}

// candidate asks apt for the package that has the kernel, and its version.
// Where there are no package lists, root fetches them.
func candidate(ctx context.Context) (pkg, version string, err error) {
	if pkg, version, err = policy(ctx); err == nil || os.Geteuid() != 0 {
		return pkg, version, err
	}
	if _, err := run(ctx, "", "apt-get", "-qq", "update"); err != nil {
		return "", "", err
	}
	return policy(ctx)
}

func policy(ctx context.Context) (pkg, version string, err error) {
	out, err := run(ctx, "", "apt-cache", "depends", metaPackage)
	if err != nil {
		return "", "", err
	}
	m := regexp.MustCompile(`Depends: (linux-image-[a-z0-9.+-]+)`).FindStringSubmatch(out)
	if m == nil {
		return "", "", fmt.Errorf("apt-cache knows no package that %s depends on", metaPackage)
	}
	out, err = run(ctx, "", "apt-cache", "policy", m[1])
	if err != nil {
		return "", "", err
	}
	c := regexp.MustCompile(`Candidate: ([A-Za-z0-9.+~:-]+)`).FindStringSubmatch(out)
	if c == nil {
		return "", "", fmt.Errorf("apt-cache knows no version of %s", m[1])
	}
	return m[1], c[1], nil
}

// download makes dir out of the package.
func download(ctx context.Context, pkg, version, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	// What a killed process left. We hold the lock: it is nobody's.
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".new-*")); err == nil {
		for _, d := range left {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	name := pkg + "=" + version
	if _, err := run(ctx, work, "apt-get", "-qq", "download", name); err != nil {
		// The mirror may have gone on since the lists were fetched; then there
		// is a newer version, and the next call asks for that.
		if os.Geteuid() != 0 {
			return err
		}
		if _, updateErr := run(ctx, "", "apt-get", "-qq", "update"); updateErr != nil {
			return errors.Join(err, updateErr)
		}
		if _, err := run(ctx, work, "apt-get", "-qq", "download", name); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s brought %d files: %w", name, len(debs), cmp.Or(err, errors.New("want one")))
	}
	tree := filepath.Join(work, "tree")
	if err := unpack(ctx, debs[0], tree); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(debs[0]), err)
	}
	return os.Rename(tree, dir)
}

// unpack makes a tree of what machines need out of a package.
func unpack(ctx context.Context, deb, tree string) error {
	if err := extract(ctx, deb, tree); err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("%d kernels in it, want 1", len(images))
	}
	image, err := os.ReadFile(images[0])
	if err != nil {
		return err
	}
	kernel, err := unpackImage(image)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(images[0]), err)
	}
	if err := os.WriteFile(filepath.Join(tree, "vmlinux"), kernel, 0o644); err != nil {
		return err
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	_, err = run(ctx, "", "depmod", "-b", tree, release)
	return err
}

// useless are modules that no virtual machine of ours can have a use for; they
// are two thirds of the package.
var useless = regexp.MustCompile(`^lib/modules/[^/]+/kernel/(sound|drivers/(gpu|media|usb|iio|staging|hwmon|hid|platform|input|comedi|mtd|bluetooth|video|mmc|infiniband|net/(ethernet|wireless|usb|can|wan|dsa)))/`)

func extract(ctx context.Context, deb, tree string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = writeTree(tar.NewReader(pipe), tree)
	if err == nil {
		_, err = io.Copy(io.Discard, pipe) // the padding
	}
	pipe.Close() // or dpkg-deb waits for a reader that gave up
	if waitErr := cmd.Wait(); err == nil && waitErr != nil {
		err = fmt.Errorf("dpkg-deb: %w: %s", waitErr, bytes.TrimSpace(stderr.Bytes()))
	}
	return err
}

func writeTree(r *tar.Reader, tree string) error {
	root, err := newRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.Clean(h.Name), "usr/") // merged /usr
		wanted := strings.HasPrefix(name, "lib/modules/") || strings.HasPrefix(name, "boot/vmlinuz-")
		if h.Typeflag != tar.TypeReg || !wanted || useless.MatchString(name) {
			continue
		}
		if err := writeFile(root, name, r); err != nil {
			return err
		}
	}
}

// newRoot confines what an archive writes to its directory.
func newRoot(dir string) (*os.Root, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return os.OpenRoot(dir)
}

func writeFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// Lock takes a lock that the kernel drops with the process, and waits for it.
func Lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() { f.Close() }, nil
}

func run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w (run hack/deps)", err)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), cmp.Or(ctx.Err(), err), bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// Package sysctl reads and declares the sysctls of a network namespace: those
// below net, which each namespace has for itself.
package sysctl

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
)

// Family is the half of the tree that a sysctl of an interface stands in.
type Family string

// The families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Net is the sysctls of one network namespace. Its methods may be called from
// any goroutine.
//
// A name is a path below /proc/sys/net, such as "ipv4/ip_nonlocal_bind": the
// names of interfaces may contain the dots that sysctl(8) separates with.
// Errors wrap os.ErrNotExist where the kernel has no such sysctl, or there is
// no such interface.
type Net struct {
	families map[Family]*os.Root
}

// Open opens the sysctls of the calling thread's network namespace. They stay
// those of this namespace, wherever they are read.
func Open() (*Net, error) {
	n := &Net{families: map[Family]*os.Root{}}
	for _, f := range []Family{IPv4, IPv6} {
		// What lies below net differs with the namespace of who opens it, not
		// of who reads on from there.
		root, err := os.OpenRoot("/proc/sys/net/" + string(f))
		if errors.Is(err, os.ErrNotExist) && f == IPv6 { // a kernel without it
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sysctl: %w", errors.Join(err, n.Close()))
		}
		n.families[f] = root
	}
	return n, nil
}

// Close closes them.
func (n *Net) Close() error {
	var errs []error
	for _, root := range n.families {
		errs = append(errs, root.Close())
	}
	return errors.Join(errs...)
}

// Get reads a number.
func (n *Net) Get(name string) (int, error) {
	text, err := n.read(name)
	if err != nil {
		return 0, fmt.Errorf("sysctl: read net/%s: %w", name, err)
	}
	value, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("sysctl: read net/%s: %q is not a number", name, text)
	}
	return value, nil
}

// Effective reads what is in force for an interface where the kernel takes the
// greater of the interface's value and that of "all": arp_ignore, arp_announce,
// rp_filter, accept_dad and others (Documentation/networking/ip-sysctl.rst says
// which). Others are read with Get(Conf(...)).
func (n *Net) Effective(f Family, iface, key string) (int, error) {
	all, err := n.Get(Conf(f, "all", key))
	if err != nil {
		return 0, err
	}
	own, err := n.Get(Conf(f, iface, key))
	return max(all, own), err
}

// Conf is the name of an interface's sysctl; the interface may be "all" or
// "default", too.
func Conf(f Family, iface, key string) string {
	return path.Join(string(f), "conf", iface, key)
}

// Set makes a number what it should be, and tells whether it was another. It
// needs CAP_NET_ADMIN when it was.
func (n *Net) Set(name string, value int) (changed bool, err error) {
	if old, err := n.Get(name); err != nil || old == value {
		return false, err
	}
	root, rest, err := n.split(name)
	if err == nil {
		err = write(root, rest, strconv.Itoa(value))
	}
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w; CAP_NET_ADMIN and a writable /proc/sys are needed", err)
	}
	if err != nil {
		return false, fmt.Errorf("sysctl: set net/%s to %d: %w", name, value, err)
	}
	return true, nil
}

func write(root *os.Root, name, text string) error {
	f, err := root.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (n *Net) read(name string) (string, error) {
	root, rest, err := n.split(name)
	if err != nil {
		return "", err
	}
	b, err := root.ReadFile(rest)
	return strings.TrimSpace(string(b)), err
}

func (n *Net) split(name string) (*os.Root, string, error) {
	family, rest, _ := strings.Cut(name, "/")
	root := n.families[Family(family)]
	if root == nil {
		return nil, "", fmt.Errorf("%q: %w", family, os.ErrNotExist)
	}
	return root, rest, nil
}

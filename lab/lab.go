package lab

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Options say what a lab is like. The zero value is a lab without networks.
type Options struct {
	// Networks are made at once; AddNetwork makes more.
	Networks []string

	// Expose lists files and directories of the machine that every host sees,
	// read-only and at the same path. A host sees all of the machine's disks
	// anyway, except /tmp, /var/tmp, /root, /run and /var/log: a binary built
	// below one of these needs to be exposed, or its directory.
	Expose []string

	// Persist lists further directories that are on a host's disk, apart from
	// /var/lib/holdfast and /etc/holdfast.
	Persist []string

	// Dir is where the lab keeps disks and logs, below a directory of its own;
	// default os.TempDir().
	Dir string

	// Keep leaves that directory when the lab closes. The environment variable
	// LAB_KEEP does the same.
	Keep bool

	// Log is told what happens to hosts; nil: nobody.
	Log *slog.Logger
}

// Lab is a switch and the hosts around it. Its methods, and those of its hosts
// and processes, may be called from several goroutines.
type Lab struct {
	options Options
	log     *slog.Logger
	dir     *labDir
	home    *os.File // this process's own network namespace
	sw      *netSwitch

	mu     sync.Mutex
	hosts  map[string]*Host
	faults map[*Fault]bool
	serial int // numbers hosts and faults
	closed bool
}

// New makes a lab of no hosts. Close it.
func New(o Options) (*Lab, error) {
	if err := Probe(); err != nil {
		return nil, err
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	dir, err := makeLabDir(cmp.Or(o.Dir, os.TempDir()))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), home.Close())
	}
	dir.keep = o.Keep || os.Getenv("LAB_KEEP") != ""
	l := &Lab{
		options: o, log: o.Log, dir: dir, home: home,
		hosts: make(map[string]*Host), faults: make(map[*Fault]bool),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if l.sw, err = newSwitch(home); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: make the switch: %w", err), l.Close())
	}
	for _, name := range o.Networks {
		if err := l.AddNetwork(name); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Close ends every host and removes the lab's directory. It may be called again.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	hosts := slices.Collect(maps.Values(l.hosts))
	l.mu.Unlock()

	err := PowerOff(hosts...)
	if l.sw != nil {
		err = errors.Join(err, l.sw.close())
	}
	return errors.Join(err, l.home.Close(), l.dir.close())
}

// Dir is the lab's directory on the machine: logs/HOST has what its processes
// printed, disks/HOST its persistent directories.
func (l *Lab) Dir() string { return l.dir.path }

// AddNetwork adds a network that nothing is plugged into. Networks of one lab
// are separate wires; multicast reaches every port.
func (l *Lab) AddNetwork(name string) error {
	if err := l.sw.addNetwork(name); err != nil {
		return fmt.Errorf("lab: add network %q: %w", name, err)
	}
	return nil
}

// NIC is a network interface of a host.
type NIC struct {
	Network string         // the network it is plugged into
	Addrs   []netip.Prefix // addresses with their prefix lengths; may be empty
	Name    string         // default eth0, eth1 ... in the order of AddHost
}

// On returns a NIC on a network with addresses such as "10.1.0.1/24". It
// panics when one doesn't parse.
func On(network string, prefixes ...string) NIC {
	nic := NIC{Network: network}
	for _, p := range prefixes {
		nic.Addrs = append(nic.Addrs, netip.MustParsePrefix(p))
	}
	return nic
}

// AddHost adds a host and powers it on. The name becomes its host name; it must
// be new in the lab. Several hosts can be added at the same time, to boot them
// in parallel.
func (l *Lab) AddHost(name string, nics ...NIC) (*Host, error) {
	h, err := l.newHost(name, nics)
	if err != nil {
		return nil, fmt.Errorf("lab: add host %q: %w", name, err)
	}
	if err := h.PowerOn(); err != nil {
		l.mu.Lock()
		delete(l.hosts, name)
		l.mu.Unlock()
		return nil, err
	}
	return h, nil
}

func (l *Lab) newHost(name string, nics []NIC) (*Host, error) {
	if !validHostName(name) {
		return nil, errors.New("not a host name: letters, digits and hyphens, at most 63")
	}
	nics = slices.Clone(nics)
	for i := range nics {
		nics[i].Name = cmp.Or(nics[i].Name, fmt.Sprintf("eth%d", i))
		if !l.sw.has(nics[i].Network) {
			return nil, fmt.Errorf("no network %q", nics[i].Network)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, errClosed
	case l.hosts[name] != nil:
		return nil, errors.New("there is one already")
	}
	l.serial++
	h := &Host{
		lab: l, name: name, serial: l.serial, nics: nics,
		image:     make(map[string][]byte),
		unplugged: make(map[string]bool),
		delays:    make(map[string]time.Duration),
	}
	for _, dir := range []string{h.rootDir(), h.Disk(), h.logDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	l.hosts[name] = h
	return h, nil
}

func validHostName(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '-' {
		return false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Host returns a host by its name, nil when there is none.
func (l *Lab) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[name]
}

// Hosts returns all hosts in the order in which they were added.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	hosts := slices.Collect(maps.Values(l.hosts))
	slices.SortFunc(hosts, func(a, b *Host) int { return cmp.Compare(a.serial, b.serial) })
	return hosts
}

// PowerOff cuts the power of several hosts at the same moment: first all their
// cables, then everything that runs on them. A host that is off stays off.
func PowerOff(hosts ...*Host) error {
	errs := make([]error, len(hosts))
	for i, h := range hosts {
		errs[i] = h.cutCables()
	}
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = errors.Join(errs[i], h.PowerOff()) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// DumpLogs writes the end of what each process of each host printed, for a
// test that failed.
func (l *Lab) DumpLogs(w io.Writer, lines int) error {
	files, err := filepath.Glob(filepath.Join(l.Dir(), "logs", "*", "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := tail(file, lines)
		if err != nil {
			return err
		}
		if text == "" {
			continue
		}
		name, err := filepath.Rel(filepath.Join(l.Dir(), "logs"), file)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "--- %s\n%s\n", name, text); err != nil {
			return err
		}
	}
	return nil
}

var errClosed = errors.New("the lab is closed")

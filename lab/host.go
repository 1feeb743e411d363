package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrOff says that a host has no power.
var ErrOff = errors.New("the host is off")

// Host is a machine of the lab, on or off. What it has on its disk
// ([Host.Disk]) stays over a power cut, and what was given to it with
// [Host.Write]; all other changes of its files, its processes and the state of
// its kernel are lost.
type Host struct {
	lab    *Lab
	name   string
	serial int
	nics   []NIC

	power sync.Mutex // held while the host is switched on or off

	mu        sync.Mutex
	up        *session // nil when off
	image     map[string][]byte
	unplugged map[string]bool // by network
	delays    map[string]time.Duration
}

// String returns the host's name.
func (h *Host) String() string { return h.name }

// Addr returns the host's first address on a network. It panics when there is
// none: that is a mistake in the test.
func (h *Host) Addr(network string) netip.Addr {
	for _, nic := range h.nics {
		if nic.Network == network && len(nic.Addrs) > 0 {
			return nic.Addrs[0].Addr()
		}
	}
	panic(fmt.Sprintf("lab: host %s has no address on network %q", h.name, network))
}

// MAC returns the hardware address of the host's first interface on a network,
// which it keeps over power cuts.
func (h *Host) MAC(network string) (net.HardwareAddr, error) {
	for i, nic := range h.nics {
		if nic.Network == network {
			return h.mac(i), nil
		}
	}
	return nil, fmt.Errorf("lab: host %s is not on network %q", h.name, network)
}

func (h *Host) mac(nic int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 'h', 'f', byte(h.serial >> 8), byte(h.serial), byte(nic)}
}

// PID returns the process id, on the machine, of the host's first process; 0
// when it is off. "nsenter --target PID --all" opens a shell in the host.
func (h *Host) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up == nil {
		return 0
	}
	return h.up.pid
}

// IsOn says whether the host has power. It has, too, when somebody killed its
// first process and nothing runs on it any more.
func (h *Host) IsOn() bool { return h.PID() != 0 }

// PowerOn boots the host and returns when processes can be started. A host
// that is on stays so. Cables that were pulled stay pulled.
func (h *Host) PowerOn() error {
	h.power.Lock()
	defer h.power.Unlock()
	if h.IsOn() {
		return nil
	}
	start := time.Now()
	s, err := h.boot()
	if err != nil {
		err = errors.Join(err, h.removePorts())
		return fmt.Errorf("lab: host %s: power on: %w", h.name, err)
	}
	h.mu.Lock()
	h.up = s
	h.mu.Unlock()
	h.lab.log.Info("power on", "host", h.name, "pid", s.pid, "took", time.Since(start))
	return nil
}

func (h *Host) boot() (*session, error) {
	s, err := startSession(h.logDir(), bootMessage{
		Name:    h.name,
		Root:    h.rootDir(),
		Disk:    h.Disk(),
		Persist: h.lab.persistent(),
		Expose:  h.lab.options.Expose,
		Hosts:   h.hostsFile(),
	})
	if err != nil {
		return nil, err
	}
	// The cables are laid while init makes its root.
	netErr := h.connect(s)
	if err := errors.Join(s.booted(), netErr, h.restoreImage(s)); err != nil {
		return nil, errors.Join(err, s.kill())
	}
	return s, nil
}

// hostsFile is /etc/hosts with the host itself, at the addresses of its first
// interface, as a cluster's installer writes it.
func (h *Host) hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	if len(h.nics) > 0 {
		for _, p := range h.nics[0].Addrs {
			fmt.Fprintf(&b, "%s %s\n", p.Addr(), h.name)
		}
	}
	return b.String()
}

// connect brings up the loopback and lays the cables.
func (h *Host) connect(s *session) error {
	err := inNetns(s.netns, h.lab.home, func() error {
		// Addresses are usable at once, and come from the lab only.
		for _, name := range []string{"accept_dad", "accept_ra", "dad_transmits"} {
			for _, conf := range []string{"all", "default"} {
				if err := setOptionalSysctl("net/ipv6/conf/"+conf+"/"+name, "0"); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	lo, err := s.handle.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := s.handle.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	for i, nic := range h.nics {
		if err := h.connectNIC(s, i, nic); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) connectNIC(s *session, i int, nic NIC) error {
	port := h.port(i)
	veth := &netlink.Veth{
		LinkAttrs:     netlink.NewLinkAttrs(),
		PeerName:      nic.Name,
		PeerNamespace: netlink.NsFd(s.netns.Fd()),
		// A machine keeps its hardware address when its power goes.
		PeerHardwareAddr: h.mac(i),
	}
	if err := h.lab.sw.connect(port, h.name+" "+nic.Name, nic.Network, veth); err != nil {
		return err
	}
	link, err := s.handle.LinkByName(nic.Name)
	if err != nil {
		return err
	}
	if err := s.handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", nic.Name, err)
	}
	for _, p := range nic.Addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := s.handle.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", p, nic.Name, err)
		}
	}
	h.mu.Lock()
	plugged, delay := !h.unplugged[nic.Network], h.delays[nic.Network]
	h.mu.Unlock()
	if delay > 0 {
		if err := h.lab.sw.delayPort(port, delay); err != nil {
			return err
		}
	}
	return h.plug(s, i, plugged)
}

// plug puts a cable in, and waits until it works, or pulls it.
func (h *Host) plug(s *session, i int, plugged bool) error {
	if err := h.lab.sw.setPort(h.port(i), plugged); err != nil || !plugged {
		return err
	}
	// An interface that is down in the host has no carrier, and may stay so.
	if link, err := s.handle.LinkByName(h.nics[i].Name); err != nil || link.Attrs().Flags&net.FlagUp == 0 {
		return err
	}
	return errors.Join(awaitUp(s.handle, h.nics[i].Name), awaitUp(h.lab.sw.handle, h.port(i)))
}

// port names the switch's port for an interface of this host.
func (h *Host) port(nic int) string { return fmt.Sprintf("h%dp%d", h.serial, nic) }

// ports returns the ports of the host on a network; on all, when it is "".
func (h *Host) ports(network string) ([]string, error) {
	var ports []string
	for i, nic := range h.nics {
		if network == "" || nic.Network == network {
			ports = append(ports, h.port(i))
		}
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("host %s is not on network %q", h.name, network)
	}
	return ports, nil
}

// PowerOff cuts the host's power: its cables are dead from one moment to the
// next, so that no FIN or RST is seen by a peer, then every process is killed,
// and its kernel forgets all its addresses and connections. It returns when
// all that is done. A host that is off stays so.
func (h *Host) PowerOff() error {
	h.power.Lock()
	defer h.power.Unlock()
	h.mu.Lock()
	s := h.up
	h.mu.Unlock()
	if s == nil {
		return nil
	}
	err := h.cutCables()
	h.mu.Lock()
	h.up = nil
	h.mu.Unlock()
	if err := errors.Join(err, s.kill(), h.removePorts()); err != nil {
		return fmt.Errorf("lab: host %s: power off: %w", h.name, err)
	}
	h.lab.log.Info("power off", "host", h.name)
	return nil
}

func (h *Host) cutCables() error {
	if !h.IsOn() {
		return nil
	}
	var err error
	for i := range h.nics {
		err = errors.Join(err, h.lab.sw.setPort(h.port(i), false))
	}
	return err
}

func (h *Host) removePorts() error {
	var err error
	for i := range h.nics {
		err = errors.Join(err, h.lab.sw.removePort(h.port(i)))
	}
	return err
}

// Unplug pulls the host's cable to a network: both ends lose their carrier.
func (h *Host) Unplug(network string) error { return h.setPlugged(network, false) }

// Plug puts the cable back.
func (h *Host) Plug(network string) error { return h.setPlugged(network, true) }

func (h *Host) setPlugged(network string, plugged bool) error {
	if _, err := h.ports(network); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	h.power.Lock()
	defer h.power.Unlock()
	h.mu.Lock()
	h.unplugged[network] = !plugged
	h.mu.Unlock()
	s, err := h.running()
	if err != nil {
		return nil // the next boot sees it
	}
	for i, nic := range h.nics {
		if nic.Network != network {
			continue
		}
		if err := h.plug(s, i, plugged); err != nil {
			return fmt.Errorf("lab: host %s: network %s: %w", h.name, network, err)
		}
	}
	h.lab.log.Info("cable", "host", h.name, "network", network, "plugged", plugged)
	return nil
}

// Delay delays every packet that the host gets from a network by d, at least
// until it is called with 0. Where the kernel cannot, it returns [ErrNoNetem].
func (h *Host) Delay(network string, d time.Duration) error {
	ports, err := h.ports(network)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	h.power.Lock()
	defer h.power.Unlock()
	for _, port := range ports {
		if !h.IsOn() {
			break
		}
		if err := h.lab.sw.delayPort(port, d); err != nil {
			return fmt.Errorf("lab: host %s: delay network %s by %s: %w", h.name, network, d, err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.delays[network] = d
	return nil
}

func (h *Host) running() (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up == nil {
		return nil, ErrOff
	}
	select {
	case <-h.up.dead: // somebody killed its init
		return nil, ErrOff
	default:
		return h.up, nil
	}
}

func (h *Host) rootDir() string { return filepath.Join(h.lab.Dir(), "roots", h.name) }
func (h *Host) logDir() string  { return filepath.Join(h.lab.Dir(), "logs", h.name) }

// persistent are the directories on the disk.
func (l *Lab) persistent() []string {
	dirs := []string{"/etc/holdfast", "/var/lib/holdfast"}
	for _, d := range l.options.Persist {
		if d = filepath.Clean(d); !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// Disk is the directory on the machine that holds the host's persistent
// directories: /var/lib/holdfast of the host is Disk()/var/lib/holdfast.
func (h *Host) Disk() string { return filepath.Join(h.lab.Dir(), "disks", h.name) }

// WipeDisk empties the host's disk; with arguments, only these directories of
// it. The host must be off.
func (h *Host) WipeDisk(dirs ...string) error {
	h.power.Lock()
	defer h.power.Unlock()
	if h.IsOn() {
		return fmt.Errorf("lab: host %s: wipe the disk: the host is on", h.name)
	}
	if len(dirs) == 0 {
		dirs = h.lab.persistent()
	}
	for _, dir := range dirs {
		if !underAny(filepath.Clean(dir), h.lab.persistent()...) {
			return fmt.Errorf("lab: host %s: wipe the disk: %s is not on it", h.name, dir)
		}
		if err := os.RemoveAll(filepath.Join(h.Disk(), dir)); err != nil {
			return fmt.Errorf("lab: host %s: wipe the disk: %w", h.name, err)
		}
	}
	h.lab.log.Info("disk wiped", "host", h.name, "dirs", dirs)
	return nil
}

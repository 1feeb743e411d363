package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// linkTimeout bounds the wait for a carrier, some milliseconds on an idle machine.
const linkTimeout = 30 * time.Second

// netSwitch is a network namespace with one bridge a network, and nothing else
// than the ports of hosts.
type netSwitch struct {
	netns  *os.File
	home   *os.File
	handle *netlink.Handle

	mu       sync.Mutex
	networks map[string]*netlink.Bridge
}

// newSwitch makes the namespace on a thread of its own; the file keeps it.
func newSwitch(home *os.File) (*netSwitch, error) {
	s := &netSwitch{home: home, networks: make(map[string]*netlink.Bridge)}
	var err error
	if s.netns, err = newNetns(); err != nil {
		return nil, err
	}
	// The switch has no address and says nothing itself. Bridged packets are
	// no business of the IP firewall.
	err = inNetns(s.netns, home, func() error {
		return errors.Join(
			setSysctl("net/ipv6/conf/default/disable_ipv6", "1"),
			setOptionalSysctl("net/bridge/bridge-nf-call-arptables", "0"),
			setOptionalSysctl("net/bridge/bridge-nf-call-iptables", "0"),
			setOptionalSysctl("net/bridge/bridge-nf-call-ip6tables", "0"))
	})
	if err == nil {
		s.handle, err = netlink.NewHandleAt(netns.NsHandle(s.netns.Fd()), unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, errors.Join(err, s.netns.Close())
	}
	return s, nil
}

func newNetns() (*os.File, error) {
	type answer struct {
		f   *os.File
		err error
	}
	result := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- answer{err: fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		result <- answer{f, err}
	}()
	a := <-result
	return a.f, a.err
}

// setSysctl sets a sysctl of the network namespace that the thread is in.
func setSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// setOptionalSysctl is for those that a kernel may not have.
func setOptionalSysctl(name, value string) error {
	err := setSysctl(name, value)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (s *netSwitch) close() error {
	s.handle.Close()
	return s.netns.Close()
}

func (s *netSwitch) has(network string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.networks[network] != nil
}

func (s *netSwitch) bridge(network string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.networks[network] == nil {
		return "", fmt.Errorf("no network %q", network)
	}
	return s.networks[network].Name, nil
}

func (s *netSwitch) addNetwork(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.networks[name] != nil {
		return errors.New("there is one already")
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("br%d", len(s.networks))
	// Without snooping, multicast floods, as on a switch without a querier.
	snooping := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := s.handle.LinkAdd(bridge); err != nil {
		return err
	}
	if err := errors.Join(
		s.handle.LinkSetAlias(bridge, name),
		s.handle.LinkSetUp(bridge),
	); err != nil {
		return errors.Join(err, s.handle.LinkDel(bridge))
	}
	s.networks[name] = bridge
	return nil
}

// connect lays a cable from a port of the switch to a new interface in the
// namespace of a host.
func (s *netSwitch) connect(port, alias, network string, veth *netlink.Veth) error {
	s.mu.Lock()
	bridge := s.networks[network]
	s.mu.Unlock()
	veth.LinkAttrs.Name = port
	veth.LinkAttrs.MasterIndex = bridge.Index
	if err := s.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("connect %s to network %s: %w", alias, network, err)
	}
	return s.handle.LinkSetAlias(veth, alias)
}

// setPort gives the port's cable a carrier, or takes it.
func (s *netSwitch) setPort(port string, up bool) error {
	link, err := s.handle.LinkByName(port)
	if err != nil {
		return err
	}
	if !up {
		return s.handle.LinkSetDown(link)
	}
	return s.handle.LinkSetUp(link)
}

// awaitUp waits until an interface works. The kernel learns of a carrier a
// little later than it comes, and until then loses what is sent.
func awaitUp(handle *netlink.Handle, name string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(linkTimeout); ; <-tick.C {
		link, err := handle.LinkByName(name)
		if err != nil {
			return err
		}
		state := link.Attrs().OperState
		if state == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is %s after %s", name, state, linkTimeout)
		}
	}
}

// removePort removes the port and with it the host's interface.
func (s *netSwitch) removePort(port string) error {
	link, err := s.handle.LinkByName(port)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	// The kernel may have just removed it, with the namespace of the host.
	if err := s.handle.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// delayPort delays what leaves the port towards its host; 0 ends that.
func (s *netSwitch) delayPort(port string, d time.Duration) error {
	link, err := s.handle.LinkByName(port)
	if err != nil {
		return err
	}
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if d == 0 {
		err := s.handle.QdiscDel(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{}))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // there is none
			return nil
		}
		return err
	}
	// Netem holds at most Limit packets: enough for a test's traffic.
	netem := netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{Latency: uint32(d.Microseconds()), Limit: 100_000})
	err = s.handle.QdiscReplace(netem)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return ErrNoNetem
	}
	return err
}

// ErrNoNetem says that the kernel has no sch_netem, and so cannot delay packets.
var ErrNoNetem = errors.New("this kernel has no netem")

// nft runs nft in the switch's namespace and returns what it printed.
func (s *netSwitch) nft(stdin string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	err := inNetns(s.netns, s.home, func() error {
		cmd := exec.Command("nft", args...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		return cmd.Run()
	})
	if err != nil {
		return "", fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

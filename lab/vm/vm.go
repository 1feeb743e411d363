package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"holdfast/lab/vm/channel"
)

// ErrOff says that a machine has no power.
var ErrOff = errors.New("the machine is off")

// BootTime is how long a machine may take to boot: some seconds, and several times
// as long with others beside it.
const BootTime = 3 * time.Minute

// Options say what a machine is like. The zero value is one without network
// and disks.
type Options struct {
	Name     string // its host name; default vm
	CPUs     int    // default 2
	MemoryMB int    // default 1024; the host gives only what is used

	// Modules are loaded at boot, with what they need: names such as "ip_vs".
	// All other modules can be loaded with modprobe, which costs 0.2 s each.
	Modules []string

	NICs  []NIC
	Disks []*Disk // /dev/vda, /dev/vdb ...

	// Expose lists files and directories of the host that the machine sees at
	// the same path. It sees all of the host's files anyway, except below
	// /tmp, /var/tmp, /root, /run and /var/log. They are read-only, and must
	// not change while the machine is on.
	Expose []string

	// KernelOptions are added to the kernel's command line.
	KernelOptions []string

	// Log is told what happens to the machine; nil: nobody.
	Log *slog.Logger
}

// NIC is a network interface of a machine.
type NIC struct {
	Wire  *Wire
	Addrs []netip.Prefix // addresses with their prefix lengths; may be empty
	Name  string         // default eth0, eth1 ...
}

// On returns a NIC on a wire with addresses such as "10.1.0.1/24". It panics
// when one doesn't parse.
func On(w *Wire, prefixes ...string) NIC {
	nic := NIC{Wire: w}
	for _, p := range prefixes {
		nic.Addrs = append(nic.Addrs, netip.MustParsePrefix(p))
	}
	return nic
}

// Machine is a virtual machine, on or off. Nothing of it stays over a power
// cut but its disks. Its methods may be called from several goroutines.
type Machine struct {
	o       Options
	log     *slog.Logger
	macs    []net.HardwareAddr
	image   image
	console *ending

	power sync.Mutex // held while it is switched on or off

	mu      sync.Mutex
	up      *session // nil when off
	outputs map[string]*ending
}

// New returns a machine that is off. It gets what machines are made of, a
// kernel and the agent, which takes some seconds at the first time.
func New(ctx context.Context, o Options) (*Machine, error) {
	o.Name = cmp.Or(o.Name, "vm")
	o.CPUs = cmp.Or(o.CPUs, 2)
	o.MemoryMB = cmp.Or(o.MemoryMB, 1024)
	o.NICs = slices.Clone(o.NICs)
	m := &Machine{o: o, log: o.Log, console: new(ending), outputs: make(map[string]*ending)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	modules := slices.Clone(o.Modules)
	for i := range o.NICs {
		o.NICs[i].Name = cmp.Or(o.NICs[i].Name, fmt.Sprintf("eth%d", i))
		m.macs = append(m.macs, o.NICs[i].Wire.newMAC())
		modules = append(modules, "virtio_net")
	}
	if len(o.Disks) > 0 {
		modules = append(modules, "virtio_blk")
	}
	var err error
	if m.image, err = newImage(ctx, modules); err != nil {
		return nil, fmt.Errorf("vm: machine %s: %w", o.Name, err)
	}
	return m, nil
}

// String returns the machine's name.
func (m *Machine) String() string { return m.o.Name }

// Addr returns the machine's first address on a wire. It panics when there is
// none: that is a mistake in the test.
func (m *Machine) Addr(w *Wire) netip.Addr {
	for _, nic := range m.o.NICs {
		if nic.Wire == w && len(nic.Addrs) > 0 {
			return nic.Addrs[0].Addr()
		}
	}
	panic(fmt.Sprintf("vm: machine %s has no address on that wire", m.o.Name))
}

// PowerOn boots the machine and returns when processes can be started. A
// machine that is on stays so. The error of one that doesn't boot has the end
// of its console.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.power.Lock()
	defer m.power.Unlock()
	if _, err := m.running(); err == nil {
		return nil
	}
	start := time.Now()
	e, err := m.startEmulator()
	if err != nil {
		return bootError(m.o.Name, err, m.console)
	}
	s := newSession(e, m.bootMessage())
	if err := s.await(ctx); err != nil {
		err = errors.Join(err, e.kill()) // first: then the console is complete
		return bootError(m.o.Name, err, m.console)
	}
	m.mu.Lock()
	m.up = s
	m.mu.Unlock()
	m.log.Info("power on", "machine", m.o.Name, "emulator", e.cmd.Process.Pid, "took", time.Since(start))
	return nil
}

func (s *session) await(ctx context.Context) error {
	limit := time.NewTimer(BootTime)
	defer limit.Stop()
	select {
	case err := <-s.booted:
		return err
	case <-limit.C:
		return fmt.Errorf("not up after %s", BootTime)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Machine) bootMessage() channel.BootMessage {
	b := channel.BootMessage{Name: m.o.Name, Modules: m.image.modules, Kernel: m.image.moduleDir, Expose: m.o.Expose}
	for i, nic := range m.o.NICs {
		n := channel.NIC{Name: nic.Name, MAC: m.macs[i].String()}
		for _, p := range nic.Addrs {
			n.Addrs = append(n.Addrs, p.String())
		}
		b.NICs = append(b.NICs, n)
	}
	return b
}

// PowerOff cuts the machine's power: it is silent from one moment to the next,
// its memory is gone, and of its disks (not of shared ones) what was not
// flushed. It returns when all that is done. A machine that is off stays so.
func (m *Machine) PowerOff() error {
	m.power.Lock()
	defer m.power.Unlock()
	m.mu.Lock()
	s := m.up
	m.up = nil
	m.mu.Unlock()
	if s == nil {
		return nil
	}
	err := s.kill()
	<-s.gone
	for _, d := range m.o.Disks {
		if !d.o.Shared {
			err = errors.Join(err, d.PowerCut())
		}
	}
	if err != nil {
		return fmt.Errorf("vm: machine %s: power off: %w", m.o.Name, err)
	}
	m.log.Info("power off", "machine", m.o.Name)
	return nil
}

// Reset presses the reset button: the machine boots again. Its memory is lost;
// its disks keep their power and so their caches.
func (m *Machine) Reset(ctx context.Context) error {
	m.power.Lock()
	m.mu.Lock()
	s := m.up
	m.up = nil
	m.mu.Unlock()
	if s == nil {
		m.power.Unlock()
		return fmt.Errorf("vm: machine %s: reset: %w", m.o.Name, ErrOff)
	}
	err := s.kill()
	<-s.gone
	m.power.Unlock()
	if err != nil {
		return fmt.Errorf("vm: machine %s: reset: %w", m.o.Name, err)
	}
	return m.PowerOn(ctx)
}

// Pause stops the machine's processors: it does nothing and knows nothing of
// the time that passes, like a node that hangs. Its cables stay.
func (m *Machine) Pause() error { return m.control("pause", "stop", nil) }

// Resume ends a Pause.
func (m *Machine) Resume() error { return m.control("resume", "cont", nil) }

// Unplug pulls the cable of an interface: both ends lose their carrier. The
// next boot plugs it in again.
func (m *Machine) Unplug(nic string) error { return m.setLink(nic, false) }

// Plug puts the cable back.
func (m *Machine) Plug(nic string) error { return m.setLink(nic, true) }

func (m *Machine) setLink(name string, up bool) error {
	for i, nic := range m.o.NICs {
		if nic.Name == name {
			return m.control("cable of "+name, "set_link", map[string]any{"name": netdev(i), "up": up})
		}
	}
	return fmt.Errorf("vm: machine %s has no interface %q", m.o.Name, name)
}

func (m *Machine) control(what, command string, arguments map[string]any) error {
	s, err := m.running()
	if err == nil {
		err = s.monitor.run(command, arguments)
	}
	if err != nil {
		return fmt.Errorf("vm: machine %s: %s: %w", m.o.Name, what, err)
	}
	m.log.Info(command, "machine", m.o.Name, "arguments", arguments)
	return nil
}

// Off is closed when the machine goes off: by PowerOff, or because it switched
// itself off, rebooted or had a kernel panic. One that is off gives a closed one.
func (m *Machine) Off() <-chan struct{} {
	s, err := m.running()
	if err != nil {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return s.dead
}

func (m *Machine) running() (*session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.up == nil {
		return nil, ErrOff
	}
	select {
	case <-m.up.gone: // it ended by itself
		return nil, ErrOff
	default:
		return m.up, nil
	}
}

// PID returns the process id of the emulator; 0 when the machine is off.
func (m *Machine) PID() int {
	s, err := m.running()
	if err != nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Console returns the end of what the machine's kernel printed, over all boots.
func (m *Machine) Console() string { return m.console.String() }

// printed returns what keeps the output of processes under a name.
func (m *Machine) printed(name string) *ending {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.outputs[name] == nil {
		m.outputs[name] = new(ending)
	}
	return m.outputs[name]
}

// DumpLogs writes the end of the console and of what each process printed, for
// a test that failed.
func (m *Machine) DumpLogs(w io.Writer, lines int) error {
	m.mu.Lock()
	all := maps.Clone(m.outputs)
	m.mu.Unlock()
	all["console"] = m.console
	for _, name := range slices.Sorted(maps.Keys(all)) {
		text := all[name].last(lines)
		if text == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "--- %s %s\n%s\n", m.o.Name, name, text); err != nil {
			return err
		}
	}
	return nil
}

// PowerOn boots several machines at the same time.
func PowerOn(ctx context.Context, machines ...*Machine) error {
	return each(machines, func(m *Machine) error { return m.PowerOn(ctx) })
}

// PowerOff cuts the power of several machines at the same time.
func PowerOff(machines ...*Machine) error { return each(machines, (*Machine).PowerOff) }

func each(machines []*Machine, f func(*Machine) error) error {
	errs := make([]error, len(machines))
	var wg sync.WaitGroup
	for i, m := range machines {
		wg.Go(func() { errs[i] = f(m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

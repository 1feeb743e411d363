package vm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/lab/vm/channel"
)

const (
	emulatorProgram = "qemu-system-x86_64"

	// killTime is how long an emulator may take to be gone after SIGKILL: it has much
	// memory to give back, and its machine may stand still.
	killTime = 30 * time.Second
)

// kernelOptions are for a fast boot under emulation, and for a machine whose
// end is seen: a panic reboots at once, and a reboot ends the emulator.
func kernelOptions() []string {
	return []string{
		"console=ttyS0", "quiet", "panic=-1", channel.Mark,
		"no_timer_check", "tsc=reliable", "mitigations=off", "nokaslr", "init_on_alloc=0", "audit=0", "apparmor=0",
		"rcupdate.rcu_expedited=1", // network namespaces come and go
	}
}

// acceleration returns QEMU's accelerator and processor. Emulation in software
// is the rule: nested KVM hangs on some machines that seem to have it.
func acceleration() []string {
	if os.Getenv("LAB_KVM") != "" {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
}

// emulator is a QEMU process and our ends of its cables. Its devices are
// connected by inherited sockets only: nothing of it has a name.
type emulator struct {
	cmd     *exec.Cmd
	console *ending
	agent   net.Conn
	monitor *monitor
	nics    []*Port
	disks   []<-chan struct{} // closed when a disk has no work of it any more
	dead    chan struct{}     // closed when the process is gone
}

// cables collects the arguments and open files of an emulator that is to start.
type cables struct {
	args  []string
	files []*os.File // descriptors 3, 4 ... of the emulator
}

// add gives the emulator a file and returns the number that it has there.
func (c *cables) add(f *os.File) string {
	c.files = append(c.files, f)
	return strconv.Itoa(2 + len(c.files))
}

// pair gives the emulator one end of a socket and returns the other.
func (c *cables) pair(name string) (ours net.Conn, number string, err error) {
	ours, theirs, err := socketPair(name)
	if err != nil {
		return nil, "", err
	}
	return ours, c.add(theirs), nil
}

// socketPair returns a connection, and its other end for another process.
func socketPair(name string) (net.Conn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket for the %s: %w", name, err)
	}
	near, far := os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name)
	conn, err := net.FileConn(near)
	if err = errors.Join(err, near.Close()); err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	return conn, far, nil
}

// startEmulator starts the machine's emulator, with the cables that are
// plugged in.
func (m *Machine) startEmulator() (_ *emulator, err error) {
	e := &emulator{console: m.console, dead: make(chan struct{})}
	c := new(cables)
	defer func() {
		for _, f := range c.files {
			f.Close()
		}
		if err != nil {
			e.cut()
		}
	}()
	agent, agentNumber, err := c.pair("agent")
	if err != nil {
		return nil, err
	}
	e.agent = agent
	control, controlNumber, err := c.pair("monitor")
	if err != nil {
		return nil, err
	}
	e.monitor = newMonitor(control)
	c.args = append(acceleration(),
		"-name", m.o.Name, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
		"-m", fmt.Sprint(m.o.MemoryMB), "-smp", fmt.Sprint(m.o.CPUs), "-no-reboot",
		"-kernel", m.image.kernel, "-initrd", m.image.initrd,
		"-append", strings.Join(append(kernelOptions(), m.o.KernelOptions...), " "),
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd="+agentNumber,
		"-device", "virtserialport,chardev=agent,name="+channel.Port,
		"-chardev", "socket,id=monitor,fd="+controlNumber, "-mon", "chardev=monitor,mode=control",
	)
	if err := m.addNICs(e, c); err != nil {
		return nil, err
	}
	if err := m.addDisks(e, c); err != nil {
		return nil, err
	}
	if err := e.spawn(c); err != nil {
		return nil, fmt.Errorf("start the emulator: %w", err)
	}
	if err := e.monitor.open(); err != nil {
		return nil, errors.Join(err, e.kill())
	}
	return e, nil
}

func (m *Machine) addNICs(e *emulator, c *cables) error {
	for i, nic := range m.o.NICs {
		conn, number, err := c.pair("network")
		if err != nil {
			return err
		}
		port := nic.Wire.Join()
		e.nics = append(e.nics, port)
		go port.serve(conn)
		c.args = append(c.args,
			"-netdev", fmt.Sprintf("stream,id=%s,server=off,addr.type=fd,addr.str=%s", netdev(i), number),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=%s,mac=%s,romfile=", netdev(i), m.macs[i]))
	}
	return nil
}

func netdev(i int) string { return fmt.Sprintf("nic%d", i) }

func (m *Machine) addDisks(e *emulator, c *cables) error {
	for i, d := range m.o.Disks {
		cable, detached, err := d.attach()
		if err != nil {
			return err
		}
		e.disks = append(e.disks, detached)
		name := fmt.Sprintf("disk%d", i)
		c.args = append(c.args,
			"-blockdev", fmt.Sprintf("driver=nbd,node-name=%s,server.type=fd,server.str=%s", name, c.add(cable)),
			// Its write cache is seen by the machine, and by nobody else.
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s,write-cache=on,share-rw=on", name, name))
	}
	return nil
}

// spawn starts the process and a goroutine that waits for its end. The
// parent-death signal comes at the end of the thread that forked, so that
// goroutine keeps its thread as long as the emulator lives.
func (e *emulator) spawn(c *cables) error {
	e.cmd = exec.Command(emulatorProgram, c.args...)
	e.cmd.ExtraFiles = c.files
	e.cmd.Stdout, e.cmd.Stderr = e.console, e.console
	e.cmd.Dir = "/"
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := e.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		// How it ended is in the console.
		_ = e.cmd.Wait()
		e.cut()
		close(e.dead)
	}()
	return <-started
}

// cut closes our ends of the cables.
func (e *emulator) cut() {
	for _, port := range e.nics {
		port.Leave()
	}
	for _, c := range []io.Closer{e.agent, e.monitorConn()} {
		if c != nil {
			c.Close()
		}
	}
}

func (e *emulator) monitorConn() io.Closer {
	if e.monitor == nil {
		return nil
	}
	return e.monitor.conn
}

// kill ends the process as a power cut would end the machine, and returns when
// it is gone and the disks have done what it asked for. Cables go first.
func (e *emulator) kill() error {
	for _, port := range e.nics {
		port.Leave()
	}
	if err := e.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the emulator: %w", err)
	}
	select {
	case <-e.dead:
		for _, detached := range e.disks {
			<-detached
		}
		return nil
	case <-time.After(killTime):
		return fmt.Errorf("the emulator, process %d, is there %s after SIGKILL", e.cmd.Process.Pid, killTime)
	}
}

// bootError says why a machine isn't up: what the console said last.
func bootError(name string, err error, console *ending) error {
	return fmt.Errorf("vm: machine %s: boot: %w\nthe end of its console:\n%s", name, err, cmp.Or(console.last(30), "(nothing)"))
}

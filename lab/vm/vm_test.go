package vm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/lab"
)

const victimEnv = "VM_TEST_VICTIM"

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	if done, err := inPowerCut(); done {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	m.Run()
}

// patience is for what a machine does soon or never, a boot included: beside other
// work, emulation takes several times as long.
const patience = BootTime + 2*time.Minute

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a shell script in a machine and returns what it printed, trimmed.
func run(t *testing.T, m *Machine, script string) string {
	t.Helper()
	out, err := m.Run(limited(t), "sh", "-ec", script)
	must(t, err)
	return strings.TrimSpace(out)
}

// One machine for all that needs but one: a boot costs five seconds.
func TestMachine(t *testing.T) {
	m := NewTest(t, Options{Name: "node7", Modules: []string{
		"ip_vs", "ip_vs_rr", "nfsd", "nfs", "sch_netem", "dummy", "bonding", "8021q",
	}})
	t.Run("kernel", func(t *testing.T) { testKernel(t, m) })
	t.Run("processes", func(t *testing.T) { testProcesses(t, m) })
	t.Run("files", func(t *testing.T) { testFiles(t, m) })
	t.Run("daemon", func(t *testing.T) { testDaemonDoesNotHoldItsParent(t, m) })
	t.Run("pause", func(t *testing.T) { testPause(t, m) })
	t.Run("reset", func(t *testing.T) { testReset(t, m) })
	t.Run("panic", func(t *testing.T) { testPanicIsPowerOff(t, m) })
}

func testKernel(t *testing.T, m *Machine) {
	if out := run(t, m, "uname -n; cat /proc/sys/kernel/ostype"); out != "node7\nLinux" {
		t.Errorf("the machine says it is %q", out)
	}
	ours, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	if out := run(t, m, "cat /proc/sys/kernel/random/boot_id"); out == strings.TrimSpace(string(ours)) {
		t.Error("the machine runs the host's kernel")
	}
	run(t, m, `
		test -e /proc/net/ip_vs
		mount -t nfsd nfsd /proc/fs/nfsd && umount /proc/fs/nfsd
		ip link add d0 type dummy && ip link set d0 up
		tc qdisc add dev d0 root netem delay 10ms loss 1%
		ip link add link d0 name d0.5 type vlan id 5
		ip link add b0 type bond mode active-backup
		modprobe ip_vs_wlc`) // on request, by the machine itself
}

func testProcesses(t *testing.T, m *Machine) {
	ctx := limited(t)
	_, err := m.RunCmd(ctx, Cmd{Args: []string{"sh", "-c", "echo no >&2; exit 37"}})
	exit := new(ExitError)
	if !errors.As(err, &exit) || exit.Status.ExitStatus() != 37 || exit.Stderr != "no" {
		t.Errorf("exit 37 came back as %v", err)
	}
	if _, err := m.Run(ctx, "no-such-program"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a program that is not there: %v", err)
	}
	text := strings.Repeat("0123456789abcdef", 20000) + "\n"
	out, err := m.RunCmd(ctx, Cmd{Args: []string{"cat"}, Stdin: strings.NewReader(text)})
	if err != nil || out != text {
		t.Errorf("of %d bytes through cat came back %d, %v", len(text), len(out), err)
	}
	out, err = m.RunCmd(ctx, Cmd{Args: []string{"sh", "-c", "id -un; pwd; echo $HOME $A"}, User: "nobody", Dir: "/usr", Env: []string{"A=b"}})
	if err != nil || out != "nobody\n/usr\n/root b\n" {
		t.Errorf("user, directory and environment are %q, %v", out, err)
	}
	p, err := m.Start(Cmd{Args: []string{"sleep", "1000"}})
	must(t, err)
	must(t, p.Signal(syscall.SIGTERM))
	if err := p.Wait(ctx); !errors.As(err, &exit) || exit.Status.Signal() != syscall.SIGTERM {
		t.Errorf("a process that got SIGTERM ended by %v", err)
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := m.Run(short, "sh", "-c", "sleep 1000; true"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command over its time ended by %v", err)
	}
	// Killed with the shell that started it, and gone when the kernel has run it once
	// more.
	run(t, m, "while ps -eo args | grep '^sleep 1000'; do sleep 0.1; done")
}

func testFiles(t *testing.T, m *Machine) {
	ctx := limited(t)
	// What a machine writes is not written to the host.
	name := "/etc/holdfast-vm-test-" + strconv.Itoa(os.Getpid())
	must(t, m.Write(ctx, name, []byte("a\x00b\n")))
	data, err := m.Read(ctx, name)
	if err != nil || string(data) != "a\x00b\n" {
		t.Errorf("read %q, %v", data, err)
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		os.Remove(name)
		t.Errorf("a file of the machine is on the host: %v", err)
	}
	if out := run(t, m, "ls -A /tmp /root /run/lock"); out != "/root:\n\n/run/lock:\n\n/tmp:" {
		t.Errorf("the machine sees files of the host:\n%s", out)
	}
}

func testDaemonDoesNotHoldItsParent(t *testing.T, m *Machine) {
	start := time.Now()
	if out := run(t, m, "sleep 500 & echo started"); out != "started" {
		t.Errorf("it said %q", out)
	}
	if took := time.Since(start); took > patience-10*time.Second { // the daemon lives for longer
		t.Errorf("the command ended with its daemon, after %s", took)
	}
}

func testPause(t *testing.T, m *Machine) {
	must(t, m.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := m.Run(limited(t), "true")
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("a machine that is paused ran a command: %v", err)
	case <-ctx.Done():
	}
	must(t, m.Resume())
	if err := <-done; err != nil {
		t.Errorf("the command after the pause: %v", err)
	}
}

func testReset(t *testing.T, m *Machine) {
	run(t, m, "touch /run/here")
	p, err := m.Start(Cmd{Args: []string{"sleep", "1000"}})
	must(t, err)
	must(t, m.Reset(limited(t)))
	if err := p.Wait(limited(t)); !errors.Is(err, ErrOff) {
		t.Errorf("a process of the life before ended by %v, want ErrOff", err)
	}
	if out := run(t, m, "test -e /run/here || echo gone"); out != "gone" {
		t.Error("a file in memory is there after the reset")
	}
}

func testPanicIsPowerOff(t *testing.T, m *Machine) {
	off := m.Off()
	if _, err := m.Run(limited(t), "sh", "-c", "echo c >/proc/sysrq-trigger"); !errors.Is(err, ErrOff) {
		t.Errorf("the command that ended the kernel: %v, want ErrOff", err)
	}
	select {
	case <-off:
	case <-limited(t).Done():
		t.Fatal("a machine whose kernel panicked is on")
	}
	if _, err := m.Run(limited(t), "true"); !errors.Is(err, ErrOff) {
		t.Errorf("a command after that: %v, want ErrOff", err)
	}
	if !strings.Contains(m.Console(), "sysrq triggered crash") {
		t.Errorf("the console doesn't say why:\n%s", m.Console())
	}
}

func TestTwoMachinesTalkOverAWireUntilItIsCut(t *testing.T) {
	w := NewWire()
	spy := w.Join()
	defer spy.Leave()
	disks := []*Disk{NewTestDisk(t, DiskOptions{Size: 1 << 20, Shared: true})}
	machines := NewTests(t,
		Options{Name: "a", CPUs: 1, MemoryMB: 512, Disks: disks, NICs: []NIC{On(w, "10.9.0.1/24", "fd00:9::1/64")}},
		Options{Name: "b", CPUs: 1, MemoryMB: 512, Disks: disks, NICs: []NIC{On(w, "10.9.0.2/24", "fd00:9::2/64")}},
	)
	a, b := machines[0], machines[1]
	run(t, a, "echo written by a | dd of=/dev/vda bs=512 conv=sync oflag=direct status=none")
	run(t, a, "ping -c 2 -i 0.2 -W 30 "+b.Addr(w).String())
	run(t, b, "ping -c 2 -i 0.2 -W 30 fd00:9::1")
	run(t, a, "ping -c 1 -W 30 -s 1400 "+b.Addr(w).String())

	mac, err := net.ParseMAC(run(t, a, "cat /sys/class/net/eth0/address"))
	must(t, err)
	askARP(t, spy, mac, [4]byte{10, 9, 0, 1})

	must(t, b.Unplug("eth0"))
	run(t, b, "until grep -q 0 /sys/class/net/eth0/carrier; do sleep 0.1; done") // its kernel hears of it in its own time
	if _, err := a.Run(limited(t), "ping", "-c", "1", "-W", "1", "10.9.0.2"); err == nil {
		t.Error("a machine without a cable answers")
	}
	must(t, b.Plug("eth0"))
	run(t, a, "ping -c 1 -w 40 10.9.0.2")

	// A disk with its own power keeps its cache when a machine loses its own.
	must(t, a.PowerOff())
	if _, err := b.Run(limited(t), "ping", "-c", "1", "-W", "1", "10.9.0.1"); err == nil {
		t.Error("a machine without power answers")
	}
	if out := run(t, b, "dd if=/dev/vda bs=512 count=1 iflag=direct status=none | head -n 1"); out != "written by a" {
		t.Errorf("on the shared disk the other machine reads %q", out)
	}
}

// askARP asks for an address as a third station on the wire.
func askARP(t *testing.T, p *Port, want net.HardwareAddr, address [4]byte) {
	t.Helper()
	ours := net.HardwareAddr{0x02, 'v', 'm', 0, 0, 99}
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, ours...)
	frame = append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1) // ARP, a request (RFC 826)
	frame = append(append(frame, ours...), 10, 9, 0, 99)
	frame = append(append(frame, 0, 0, 0, 0, 0, 0), address[:]...)
	must(t, p.Send(frame))
	for ctx := limited(t); ; {
		answer, err := p.Receive(ctx)
		if err != nil {
			t.Fatalf("no answer to an ARP request: %v", err)
		}
		if len(answer) < 42 || binary.BigEndian.Uint16(answer[12:]) != 0x0806 || answer[21] != 2 || [4]byte(answer[28:]) != address {
			continue
		}
		if got := net.HardwareAddr(answer[22:28]); got.String() != want.String() {
			t.Errorf("%v is at %s, want %s", address, got, want)
		}
		return
	}
}

func TestMachineThatDoesNotBootSaysWhatItsConsoleSaid(t *testing.T) {
	Require(t)
	m, err := New(t.Context(), Options{Name: "sick", KernelOptions: []string{"rdinit=/no-such-init", "root=/dev/none"}})
	must(t, err)
	err = m.PowerOn(limited(t))
	if err == nil {
		must(t, m.PowerOff())
		t.Fatal("it booted")
	}
	for _, want := range []string{"machine sick", "Kernel panic", "VFS: Unable to mount root fs"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error has no %q:\n%v", want, err)
		}
	}
	if m.PID() != 0 {
		t.Errorf("its emulator, process %d, is there", m.PID())
	}
}

// victim boots a machine, says which process emulates it, and waits for its
// own end.
func victim() {
	m, err := New(context.Background(), Options{Name: "victim", CPUs: 1})
	if err == nil {
		err = m.PowerOn(context.Background())
	}
	fmt.Println(m.PID(), err)
	select {}
}

func TestKilledTestLeavesNoEmulator(t *testing.T) {
	Require(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, errors.Join(err, cmd.Process.Kill()))
	_ = cmd.Wait() // it was killed
	pid, _, _ := strings.Cut(line, " ")
	if number, err := strconv.Atoi(pid); err != nil || number == 0 {
		t.Fatalf("it said %q", line)
	}
	deadline := time.After(killTime + 20*time.Second)
	for {
		// A zombie has no command line; another process has another.
		text, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err != nil || !strings.Contains(string(text), emulatorProgram) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("the emulator, process %s, is there long after its test was killed", pid)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

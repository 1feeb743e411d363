package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// echoEnv makes this test binary a program that echoes what comes to a TCP
// address, as a process of a host.
const echoEnv = "LAB_TEST_ECHO"

func echoMain() {
	l, err := net.Listen("tcp", os.Getenv(echoEnv))
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // until the peer ends it
		}()
	}
}

// echoProcess starts it, and returns it with a connection to it from another host.
func echoProcess(t *testing.T, server, client *Host, address string) (*Proc, net.Conn) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	p, err := server.Start(Cmd{Args: []string{self}, Env: []string{echoEnv + "=" + address}, Name: "echo"})
	must(t, err)
	var conn net.Conn
	eventually(t, "the echo server answers", func() bool {
		conn, err = client.DialContext(limited(t), "tcp", address)
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	_, err = ask(conn, "hello", patience)
	must(t, err)
	return p, conn
}

// withSelf is a lab whose hosts can run this test binary.
func withSelf(t *testing.T) Options {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	return Options{Expose: []string{filepath.Dir(self)}}
}

func TestPowerOffIsSilentToPeers(t *testing.T) {
	_, a, b := pair(t, withSelf(t))
	server, conn := echoProcess(t, b, a, "10.99.0.2:7")

	must(t, b.PowerOff())

	_, err := ask(conn, "hello", short)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("on an open connection the peer sees %v, want silence until its timeout", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	if _, err := a.DialContext(ctx, "tcp", "10.99.0.2:7"); !isTimeout(err) {
		t.Errorf("a new connection gives %v, want a timeout", err)
	}
	exit := new(ExitError)
	if err := server.Wait(t.Context()); !errors.As(err, &exit) || exit.Status.Signal() != syscall.SIGKILL {
		t.Errorf("its process: %v, want killed", err)
	}
	if _, err := b.Run(t.Context(), "true"); !errors.Is(err, ErrOff) {
		t.Errorf("a command on it: %v, want ErrOff", err)
	}
	must(t, b.PowerOff()) // once more is nothing
}

func TestKillOfAProcessIsSeenByPeersAtOnce(t *testing.T) {
	_, a, b := pair(t, withSelf(t))
	server, conn := echoProcess(t, b, a, "10.99.0.2:7")
	must(t, server.Kill())
	// The host lives, and its kernel ends the connections of the dead.
	if _, err := ask(conn, "hello", patience); err == nil || isTimeout(err) {
		t.Errorf("on an open connection the peer sees %v, want its end", err)
	}
	if _, err := a.DialContext(limited(t), "tcp", "10.99.0.2:7"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection gives %v, want a refusal", err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestPowerOffEndsEveryProcessOfTheHost(t *testing.T) {
	_, a, b := pair(t, Options{})
	// A daemon: its own session, its parent gone, deaf to what can be ignored.
	run(t, a, "sh", "-c", `setsid sh -c 'trap "" TERM HUP INT; sleep 1000 & echo $! >/run/child; wait' >/dev/null 2>&1 & sleep 0`)
	eventually(t, "the daemon runs", func() bool {
		data, err := a.Read("/run/child")
		return err == nil && len(data) > 0
	})
	netns, err := os.Readlink("/proc/self/ns/net")
	must(t, err)
	theirs := pidsIn(t, a.PID())
	if len(theirs) < 3 {
		t.Fatalf("the host has only the processes %v", theirs)
	}
	other := pidsIn(t, b.PID())
	must(t, a.PowerOff())
	for _, pid := range theirs {
		if _, err := os.Stat(filepath.Join("/proc", pid)); err == nil {
			t.Errorf("process %s still runs", pid)
		}
	}
	if got := pidsIn(t, b.PID()); len(got) != len(other) {
		t.Errorf("the other host had processes %v, and now %v", other, got)
	}
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != netns {
		t.Errorf("this process came from %s to %s: %v", netns, now, err)
	}
}

func TestHostWhoseInitWasKilledCanBeSwitchedOffAndOn(t *testing.T) {
	_, a, _ := pair(t, Options{})
	p, err := a.Start(Cmd{Args: []string{"sleep", "1000"}})
	must(t, err)
	must(t, syscall.Kill(a.PID(), syscall.SIGKILL))
	exit := new(ExitError)
	if err := p.Wait(limited(t)); !errors.As(err, &exit) || exit.Status.Signal() != syscall.SIGKILL {
		t.Errorf("a process of the dead host: %v, want killed", err)
	}
	if _, err := a.Run(t.Context(), "true"); !errors.Is(err, ErrOff) {
		t.Errorf("a command: %v, want ErrOff", err)
	}
	must(t, a.PowerOff())
	must(t, a.PowerOn())
	run(t, a, "true")
}

// pidsIn returns the machine's processes in the PID namespace of pid.
func pidsIn(t *testing.T, pid int) []string {
	t.Helper()
	want, err := os.Readlink(filepath.Join("/proc", itoa(pid), "ns/pid"))
	must(t, err)
	links, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	must(t, err)
	var pids []string
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && ns == want {
			pids = append(pids, strings.Split(link, "/")[2])
		}
	}
	return pids
}

func itoa(n int) string {
	data, _ := json.Marshal(n) // an int has no error
	return string(data)
}

func TestDiskSurvivesAPowerCutAndTheRestDoesNot(t *testing.T) {
	_, a, b := pair(t, Options{Persist: []string{"/var/log/journal"}})
	must(t, a.Write("/etc/holdfast/cluster.yaml", []byte("v1\n")))
	must(t, a.Write("/etc/resolv.conf", []byte("nameserver 10.99.0.2\n")))
	run(t, a, "sh", "-c", "for d in /var/lib/holdfast /var/log/journal /run /tmp /var/log /usr; do echo data >$d/file; done")
	mac := run(t, a, "cat", "/sys/class/net/eth0/address")

	must(t, a.PowerOff())
	data, err := os.ReadFile(filepath.Join(a.Disk(), "var/lib/holdfast/file"))
	must(t, err)
	if string(data) != "data\n" {
		t.Errorf("the disk seen from outside has %q", data)
	}
	must(t, a.Write("/etc/holdfast/cluster.yaml", []byte("v2\n")))
	if err := a.Write("/run/file", nil); !errors.Is(err, ErrOff) {
		t.Errorf("a write to /run of a host that is off: %v", err)
	}
	must(t, a.PowerOn())

	for path, want := range map[string]string{
		"/var/lib/holdfast/file": "data\n", "/var/log/journal/file": "data\n",
		"/etc/holdfast/cluster.yaml": "v2\n", "/etc/resolv.conf": "nameserver 10.99.0.2\n",
	} {
		if got, err := a.Read(path); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"/run/file", "/tmp/file", "/var/log/file", "/usr/file"} {
		if _, err := a.Read(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after the power cut: %v, want no file", path, err)
		}
	}
	if got := run(t, a, "cat", "/sys/class/net/eth0/address"); got != mac {
		t.Errorf("its hardware address was %s, and is %s", mac, got)
	}
	echo(t, a, "10.99.0.1:7")
	if !reaches(t, b, "10.99.0.1:7", patience) {
		t.Error("the host that is back is not reached")
	}
}

func TestWipedDiskIsEmpty(t *testing.T) {
	_, a, _ := pair(t, Options{})
	must(t, a.Write("/etc/holdfast/cluster.yaml", []byte("v1\n")))
	must(t, a.Write("/var/lib/holdfast/raft/log", []byte("entries")))
	if err := a.WipeDisk(); err == nil {
		t.Error("the disk of a host that is on was wiped")
	}
	must(t, a.PowerOff())
	if err := a.WipeDisk("/usr"); err == nil {
		t.Error("/usr is not on the disk, and was wiped")
	}
	must(t, a.WipeDisk("/var/lib/holdfast"))
	must(t, a.PowerOn())
	if _, err := a.Read("/etc/holdfast/cluster.yaml"); err != nil {
		t.Errorf("wiping /var/lib/holdfast took /etc/holdfast: %v", err)
	}
	if out := run(t, a, "ls", "/var/lib/holdfast"); out != "" {
		t.Errorf("the wiped disk has %q", out)
	}
}

func TestLinksInAHostDoNotLeadOutOfIt(t *testing.T) {
	_, a, _ := pair(t, Options{})
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("the machine's"), 0o600))
	run(t, a, "ln", "-s", secret, "/run/link")
	if data, err := a.Read("/run/link"); err == nil {
		t.Errorf("a link in the host reads %q of the machine", data)
	}
	run(t, a, "sh", "-c", "echo inside >/run/there; ln -s /run/there /run/link2")
	if data, err := a.Read("/run/link2"); err != nil || string(data) != "inside\n" {
		t.Errorf("an absolute link within the host: %q, %v", data, err)
	}
}

func TestExposedBinaryRunsInTheHost(t *testing.T) {
	dir := t.TempDir() // below /tmp, which a host has its own of
	tool := filepath.Join(dir, "tool")
	must(t, os.WriteFile(tool, []byte("#!/bin/sh\necho works\n"), 0o755))
	_, a, _ := pair(t, Options{Expose: []string{dir}})
	if out := run(t, a, tool); out != "works" {
		t.Errorf("the tool says %q", out)
	}
	if _, err := a.Run(limited(t), "touch", filepath.Join(dir, "x")); err == nil {
		t.Error("a host can write to what it is shown of the machine")
	}
}

func TestTwoLabsAtOnceDoNotMeet(t *testing.T) {
	_, a, b := pair(t, Options{})
	other, c, d := pair(t, Options{})
	echo(t, b, "10.99.0.2:7")
	if !reaches(t, a, "10.99.0.2:7", patience) {
		t.Error("alpha doesn't reach beta of its lab")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.DialContext(ctx, "tcp", "10.99.0.2:7"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("alpha of the other lab gets %v, want its own beta, which refuses", err)
	}
	must(t, other.Close())
	if d.IsOn() || !b.IsOn() {
		t.Error("closing one lab must switch off its hosts, and no others")
	}
}

// victimEnv makes this test binary a program that makes a lab and waits to be
// killed.
const victimEnv = "LAB_TEST_VICTIM"

// victimReport is what the victim prints about its lab.
type victimReport struct {
	Dir  string
	Init int
	Job  int
}

func victim() {
	l, err := New(Options{Networks: []string{"adm"}, Dir: os.Getenv(victimEnv)})
	if err != nil {
		panic(err)
	}
	h, err := l.AddHost("alpha", On("adm", "10.99.0.1/24"))
	if err != nil {
		panic(err)
	}
	p, err := h.Start(Cmd{Args: []string{"sleep", "1000"}})
	if err != nil {
		panic(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(victimReport{l.Dir(), h.PID(), p.PID()}); err != nil {
		panic(err)
	}
	select {}
}

// startVictim returns when its lab is up.
func startVictim(t *testing.T, parent string) (*exec.Cmd, victimReport) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+parent)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // dead already when all went well
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	must(t, err)
	var report victimReport
	must(t, json.Unmarshal(line, &report))
	must(t, syscall.Kill(report.Job, 0))
	t.Cleanup(func() {
		if t.Failed() && !gone(report.Init) {
			_ = syscall.Kill(report.Init, syscall.SIGKILL) // what should be dead
		}
	})
	return cmd, report
}

func TestKillOfTheTestProcessLeavesNothing(t *testing.T) {
	Require(t)
	parent := t.TempDir()
	cmd, report := startVictim(t, parent)

	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // its status is the kill

	eventually(t, "the host's processes are gone", func() bool {
		return gone(report.Init) && gone(report.Job)
	})
	// Other programs mount and unmount meanwhile: whatever a host mounts is below
	// the lab's directory.
	if now, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(now), report.Dir) {
		t.Errorf("the machine has mounts of the lab in %s: %v\n%s", report.Dir, err, now)
	}
	// The directory is the next lab's to remove, and only that of the dead.
	alive, err := New(Options{Dir: parent})
	must(t, err)
	planted := filepath.Join(parent, "holdfast-lab-of-nobody")
	must(t, os.MkdirAll(filepath.Join(planted, lockName), 0o755))
	must(t, os.Chown(planted, 65534, 65534))
	third, err := New(Options{Dir: parent})
	must(t, err)
	if _, err := os.Stat(report.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of the dead lab is still there: %v", err)
	}
	if _, err := os.Stat(alive.Dir()); err != nil {
		t.Errorf("the directory of a living lab is gone: %v", err)
	}
	if _, err := os.Stat(planted); err != nil {
		t.Errorf("somebody else's directory of that name: %v", err)
	}
	must(t, os.RemoveAll(planted))
	must(t, third.Close())
	must(t, alive.Close())
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("closed labs leave %v, %v", left, err)
	}
}

// A test that was killed leaves, too, what it mounted for a host's disk: without
// the unmount, no lab could be made any more.
func TestMountsOfALabThatDiedAreTakenAway(t *testing.T) {
	Require(t)
	parent := t.TempDir()
	dead := filepath.Join(parent, "holdfast-lab-of-the-dead")
	disk := filepath.Join(dead, "disks/alpha/var/lib/holdfast")
	must(t, os.MkdirAll(disk, 0o755))
	must(t, os.WriteFile(filepath.Join(dead, lockName), nil, 0o644))
	must(t, mount("disk", disk, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) }) // gone already when all went well
	must(t, os.WriteFile(filepath.Join(disk, "file"), nil, 0o644))
	l, err := New(Options{Dir: parent})
	must(t, err)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of the dead lab is still there: %v", err)
	}
	must(t, l.Close())
}

// The two lines that hold a host to its lab, one by one.

func TestHostDiesWithItsLabEvenWhenItsInitHangs(t *testing.T) {
	Require(t)
	cmd, report := startVictim(t, t.TempDir())
	must(t, syscall.Kill(report.Init, syscall.SIGSTOP)) // it reads no end of file
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // its status is the kill
	eventually(t, "the host's processes are gone", func() bool {
		return gone(report.Init) && gone(report.Job)
	})
}

func TestHostDiesWithItsControlSocket(t *testing.T) {
	_, a, _ := pair(t, Options{})
	p, err := a.Start(Cmd{Args: []string{"sleep", "1000"}})
	must(t, err)
	must(t, a.up.conn.CloseWrite())
	if err := p.Wait(limited(t)); errors.Is(err, context.DeadlineExceeded) {
		t.Error("its process lives on")
	}
}

// gone says whether a process has ended; an unreaped one has.
func gone(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}

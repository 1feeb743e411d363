package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) {
	if Init() {
		return
	}
	switch {
	case os.Getenv(victimEnv) != "":
		victim()
	case os.Getenv(echoEnv) != "":
		echoMain()
	default:
		m.Run()
	}
}

// pair is a lab of two hosts on one network, booted at the same time.
func pair(t *testing.T, o Options) (l *Lab, a, b *Host) {
	t.Helper()
	o.Networks = append(o.Networks, "adm")
	l = NewTest(t, o)
	var wg sync.WaitGroup
	add := func(h **Host, name string, addrs ...string) {
		wg.Go(func() {
			var err error
			if *h, err = l.AddHost(name, On("adm", addrs...)); err != nil {
				t.Error(err)
			}
		})
	}
	add(&a, "alpha", "10.99.0.1/24", "fd00:99::1/64")
	add(&b, "beta", "10.99.0.2/24", "fd00:99::2/64")
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return l, a, b
}

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

// run runs a command and returns what it printed, trimmed.
func run(t *testing.T, h *Host, args ...string) string {
	t.Helper()
	out, err := h.Run(limited(t), args...)
	must(t, err)
	return strings.TrimSpace(out)
}

// patience is for what comes at once or never, on a machine that is slow and
// stands still for seconds now and then.
const patience = 30 * time.Second

// eventually polls until ok, for as long as patience lasts.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// echo serves lines on a TCP port of the host until the test ends.
func echo(t *testing.T, h *Host, address string) {
	t.Helper()
	l, err := h.Listen("tcp", address)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the peer or the test ends it
			}()
		}
	}()
}

// ask sends a line over conn and returns what comes back within the time.
func ask(conn net.Conn, line string, within time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// reaches says whether from gets an answer over a new TCP connection.
func reaches(t *testing.T, from *Host, address string, within time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	_, err = ask(conn, "hello", within)
	return err == nil
}

// short is long enough for a packet, and short enough for a test to wait for one
// that must not come.
const short = 150 * time.Millisecond

func TestHostsReachEachOtherByIPv4AndIPv6(t *testing.T) {
	_, a, b := pair(t, Options{})
	echo(t, b, "[::]:7")
	for _, address := range []string{"10.99.0.2:7", "[fd00:99::2]:7"} {
		conn, err := a.DialContext(limited(t), "tcp", address)
		must(t, err)
		defer conn.Close()
		answer, err := ask(conn, "hello", patience)
		must(t, err)
		if answer != "hello" {
			t.Errorf("%s answered %q", address, answer)
		}
		if got := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); got != a.nics[0].Addrs[0].Addr() && got != a.nics[0].Addrs[1].Addr() {
			t.Errorf("the connection to %s comes from %s, not from the host", address, got)
		}
	}
	if got, want := a.Addr("adm"), netip.MustParseAddr("10.99.0.1"); got != want {
		t.Errorf("Addr = %s, want %s", got, want)
	}
}

func TestPingReachesAHost(t *testing.T) {
	if _, err := exec.LookPath("ping"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err, "(hack/deps installs it)")
	}
	_, a, _ := pair(t, Options{})
	run(t, a, "ping", "-c1", "-W10", "10.99.0.2")
	run(t, a, "ping", "-c1", "-W10", "fd00:99::2")
}

func TestHostHasItsOwnNameAndFiles(t *testing.T) {
	_, a, b := pair(t, Options{})
	must(t, a.Write("/etc/resolv.conf", []byte("nameserver 10.99.0.2\n")))
	got := map[string]string{
		"hostname":    run(t, a, "hostname"),
		"hostname b":  run(t, b, "hostname"),
		"hosts":       run(t, a, "getent", "ahostsv4", "alpha"),
		"resolv.conf": run(t, a, "cat", "/etc/resolv.conf"),
	}
	if !strings.HasPrefix(got["hosts"], "10.99.0.1") {
		t.Errorf("alpha resolves to %q", got["hosts"])
	}
	delete(got, "hosts")
	want := map[string]string{"hostname": "alpha", "hostname b": "beta", "resolv.conf": "nameserver 10.99.0.2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestHostSeesNothingOfTheMachine(t *testing.T) {
	marker := "/run/holdfast-lab-test-" + fmt.Sprint(os.Getpid())
	must(t, os.WriteFile(marker, nil, 0o600))
	t.Cleanup(func() { os.Remove(marker) })
	l, a, _ := pair(t, Options{})

	// A kernel may put tunnel devices into every namespace; they are down.
	var up []string
	must(t, a.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if l.Flags&net.FlagUp != 0 {
				up = append(up, l.Name)
			}
		}
		return err
	}))
	slices.Sort(up)
	if diff := cmp.Diff([]string{"eth0", "lo"}, up); diff != "" {
		t.Errorf("its interfaces (-want +got)\n%s", diff)
	}
	if routes := run(t, a, "ip", "-4", "route"); strings.Contains(routes, "default") || !strings.HasPrefix(routes, "10.99.0.0/24") {
		t.Errorf("its routes are %q", routes)
	}
	if n := run(t, a, "sh", "-c", "ls /run /tmp /root /var/log"); n != "/root:\n\n/run:\nlock\n\n/tmp:\n\n/var/log:" {
		t.Errorf("its private directories are not empty: %q", n)
	}
	if _, err := a.Run(limited(t), "ls", marker); err == nil {
		t.Errorf("it sees the machine's %s", marker)
	}
	if first := run(t, a, "cat", "/proc/1/comm"); !strings.HasPrefix(first, "exe") && !strings.Contains(first, "lab") {
		t.Errorf("its first process is %q", first)
	}
	for _, m := range strings.Split(run(t, a, "cat", "/proc/mounts"), "\n") {
		if f := strings.Fields(m); strings.HasPrefix(f[1], l.Dir()) || strings.HasPrefix(f[1], "/sys/") || f[2] == "devtmpfs" {
			t.Errorf("it sees a mount of the machine: %s", m)
		}
	}
	if _, err := a.Run(limited(t), "sh", "-c", "echo 1 >/proc/sys/kernel/sysrq"); err == nil {
		t.Error("it can set a sysctl of the whole machine")
	}
	if _, err := a.Run(limited(t), "sh", "-c", "echo 1400 >/sys/class/net/lo/mtu"); err == nil {
		t.Error("it can write to /sys, most of which is the machine's")
	}
	run(t, a, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward") // its own
}

func TestWhatAHostWritesStaysInTheHost(t *testing.T) {
	_, a, b := pair(t, Options{})
	run(t, a, "sh", "-c", "echo changed >/etc/debian_version; echo new >/usr/bin/holdfast-lab-new; touch /run/x")
	for _, path := range []string{"/usr/bin/holdfast-lab-new", "/run/x"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is on the machine: %v", path, err)
		}
		if _, err := b.Read(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is on the other host: %v", path, err)
		}
	}
	machine, err := os.ReadFile("/etc/debian_version")
	must(t, err)
	if strings.Contains(string(machine), "changed") {
		t.Error("the machine's /etc/debian_version has changed")
	}
	got, err := a.Read("/etc/debian_version")
	must(t, err)
	if string(got) != "changed\n" {
		t.Errorf("the host reads %q", got)
	}
}

func TestMulticastReachesTheOtherHost(t *testing.T) {
	l, a, b := pair(t, Options{})
	// What snooping breaks, it breaks after minutes.
	link, err := l.sw.handle.LinkByName("br0")
	must(t, err)
	if snooping := link.(*netlink.Bridge).MulticastSnooping; snooping == nil || *snooping {
		t.Error("the bridge snoops multicast")
	}
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 18), Port: 1112}
	var listener *net.UDPConn
	must(t, b.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		listener, err = net.ListenMulticastUDP("udp4", eth0, group)
		return err
	}))
	defer listener.Close()
	var sender *net.UDPConn
	must(t, a.Do(func() (err error) {
		// The route decides on the interface: multicast has none of its own.
		sender, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 99, 0, 1)}, group)
		return err
	}))
	defer sender.Close()
	_, err = sender.Write([]byte("advert"))
	must(t, err)
	must(t, listener.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 100)
	n, from, err := listener.ReadFromUDP(buf)
	must(t, err)
	if string(buf[:n]) != "advert" || from.IP.String() != "10.99.0.1" {
		t.Errorf("%q from %s", buf[:n], from)
	}
}

func TestProcessEndsAsItSays(t *testing.T) {
	_, a, _ := pair(t, Options{})
	for _, c := range []struct {
		script string
		want   string // of the error; "": none
	}{
		{"exit 0", ""},
		{"echo it broke >&2; exit 3", "exit status 3: it broke"},
		{"kill -TERM $$", "killed by SIGTERM"},
	} {
		_, err := a.Run(limited(t), "sh", "-c", c.script)
		if (err == nil) != (c.want == "") || err != nil && !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.script, err, c.want)
		}
	}
	if _, err := a.Run(limited(t), "no-such-program"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a program that isn't there: %v", err)
	}
	if out := run(t, a, "sh", "-c", `echo "$HOME:$TERM:$PATH"`); out != "/root::"+hostPath {
		t.Errorf("the environment has %q", out)
	}
	out, err := a.RunCmd(limited(t), Cmd{Args: []string{"sh", "-c", "id -un; pwd; echo $X"}, User: "nobody", Dir: "/var/lib", Env: []string{"X=y"}})
	must(t, err)
	if out != "nobody\n/var/lib\ny\n" {
		t.Errorf("user, directory and environment: %q", out)
	}
}

func TestKillStopAndSignal(t *testing.T) {
	l, a, _ := pair(t, Options{})
	start := func(script string) *Proc {
		t.Helper()
		p, err := a.Start(Cmd{Args: []string{"sh", "-c", script}, Name: "job"})
		must(t, err)
		return p
	}
	killed := start("exec sleep 1000")
	if killed.PID() <= 1 || syscall.Kill(killed.PID(), 0) != nil {
		t.Fatalf("PID %d is no process of the machine", killed.PID())
	}
	must(t, killed.Kill())
	must(t, killed.Kill())
	exit := new(ExitError)
	if err := killed.Wait(t.Context()); !errors.As(err, &exit) || exit.Status.Signal() != syscall.SIGKILL {
		t.Errorf("after Kill: %v", err)
	}
	if err := killed.Signal(syscall.SIGHUP); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal to a dead process: %v", err)
	}
	polite := start("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done")
	eventually(t, "the trap is set", func() bool {
		text, err := os.ReadFile(polite.StdoutPath())
		return err == nil && strings.Contains(string(text), "ready")
	})
	must(t, polite.Stop(limited(t)))
	text, err := os.ReadFile(polite.StdoutPath())
	must(t, err)
	if !strings.HasSuffix(string(text), "bye\n") {
		t.Errorf("its output is %q", text)
	}
	var dump strings.Builder
	must(t, l.DumpLogs(&dump, 1))
	if want := "--- alpha/job.out\nbye\n"; dump.String() != want {
		t.Errorf("DumpLogs gave %q, want %q", &dump, want)
	}
}

func TestDoComesHomeWhateverTheFunctionDoes(t *testing.T) {
	_, a, _ := pair(t, Options{})
	namespace := func() string {
		link, err := os.Readlink("/proc/thread-self/ns/net")
		must(t, err)
		return link
	}
	home, theirs := namespace(), ""
	must(t, a.Do(func() error {
		theirs = namespace()
		return nil
	}))
	if theirs == home {
		t.Error("Do runs the function in the namespace of this process")
	}
	want := errors.New("as it says")
	if err := a.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do returns %v, want the function's error", err)
	}
	if err := a.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that never returns is no error")
	}
	// More goroutines than threads that may have stayed behind.
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got := namespace(); got != home {
				t.Errorf("a goroutine runs in %s, want %s", got, home)
			}
		})
	}
	wg.Wait()
}

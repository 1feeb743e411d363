package ntpproxy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/vm"
)

// busyboxSourceEnv makes TestBusyBoxIsASource, on a lab host, the one that
// disciplines a clock by that source.
const busyboxSourceEnv = "NTPPROXY_TEST_BUSYBOX_SOURCE"

// busybox is BusyBox's ntpd, which hack/peers builds. Started with -w it asks
// and never calls what sets a clock.
func busybox(t *testing.T, root string) string {
	t.Helper()
	program := filepath.Join(root, "../busybox/ntpd")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("BusyBox's ntpd is missing among the peers, run hack/peers: %v", err)
	}
	return program
}

// withoutClock are the words before a program that may not set the clock, though
// it is root for the sake of its port: a lab host has the machine's clock.
var withoutClock = []string{"setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time"}

var busyboxReply = regexp.MustCompile(`reply from \S+: offset:([-+][0-9.]+) delay:([0-9.]+) status:0x([0-9a-f]{2}) strat:(\d+)`)

// replied is an error unless the last reply that BusyBox took is of that leap,
// version and mode, of that stratum and that offset.
func replied(said, status, stratum string, offset, most time.Duration) error {
	all := busyboxReply.FindAllStringSubmatch(said, -1)
	if len(all) == 0 {
		return fmt.Errorf("no reply in %q", said)
	}
	last := all[len(all)-1]
	seconds, err := strconv.ParseFloat(last[1], 64)
	if err != nil {
		return err
	}
	if wrong := time.Duration(seconds*1e9) - offset; wrong.Abs() > most || last[3] != status || last[4] != stratum {
		return fmt.Errorf("it took %q; want status 0x%s, stratum %s and an offset within %v of %v", last[0], status, stratum, most, offset)
	}
	return nil
}

func TestBusyBoxBelievesTheServer(t *testing.T) {
	s := newSite(t)
	program := busybox(t, s.root)
	for name, server := range map[string]string{"IPv4": "10.1.0.1", "IPv6": "2001:db8:1::1"} {
		t.Run(name, func(t *testing.T) {
			s := &site{t: t, root: s.root, client: s.client}
			said := s.start(lab.Cmd{Args: []string{program, "-n", "-w", "-p", server}, User: "nobody"})
			// Leap 0, version 4, mode 4.
			s.eventually("it takes a reply", func() error { return replied(said(), "24", "4", 0, 20*time.Millisecond) })
		})
	}
}

// On loopback, so that it can be another clock that is served. BusyBox's -w
// keeps it from the machine's. The kernel stamps what arrives by the machine's
// clock: BusyBox sees half of what the time of our reply is off.
func TestBusyBoxSeesTheOffsetAndRefusesAClockThatNobodyKeeps(t *testing.T) {
	program := busybox(t, peers(t))
	c := newFakeClock(t, -2500*time.Millisecond, 0)
	c.state.Synchronised = true
	f := keeping(t, c, keepServe, "127.0.0.1:1")
	at := f.serve(t).String()
	asks := func() (said func() string) {
		log := filepath.Join(t.TempDir(), "log")
		out, err := os.Create(log)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "-n", "-w", "-p", at)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = out.Close() })
		return func() string { text, _ := os.ReadFile(log); return string(text) }
	}
	sees := func(what string, try func() error) {
		t.Helper()
		var last error
		defer func() {
			if t.Failed() {
				t.Log(last)
			}
		}()
		eventually(t, what, func() bool { last = try(); return last == nil })
	}
	said := asks()
	sees("it sees the offset of the clock that is served", func() error {
		return replied(said(), "24", "4", -1250*time.Millisecond, 50*time.Millisecond)
	})

	c.mu.Lock()
	c.state.Synchronised = false
	c.mu.Unlock()
	eventually(t, "the server says that nobody keeps its clock", func() bool { return f.server.Standing().Stratum == 0 })
	said = asks()
	sees("it refuses the server", func() error { return holds(said(), "reply from 127.0.0.1: peer is unsynced") })
	if text := said(); busyboxReply.MatchString(text) {
		t.Errorf("it took a reply: %s", text)
	}
}

// BusyBox's ntpd without a source of its own serves the machine's clock as
// stratum 1, without a reference and with a precision of 2 ms, and has no reason
// to set it. The discipline takes it, alone, for a source.
func TestBusyBoxIsASource(t *testing.T) {
	if source := os.Getenv(busyboxSourceEnv); source != "" {
		c := newFakeClock(t, -2*time.Second, 40)
		f := keeping(t, c, keepDiscipline, source)
		f.serve(t)
		eventually(t, "the clock is BusyBox's", func() bool {
			k := f.server.Kept()
			return k != nil && k.Synchronised && k.Updates > 20 && c.off(t).Abs() < 5*time.Millisecond
		})
		eventually(t, "clients are told", func() bool { return f.server.Standing().Stratum == 2 })
		if steps := c.stepped(); len(steps) != 1 {
			t.Errorf("steps %v, want the first alone", steps)
		}
		return
	}
	s := newSite(t)
	said := s.start(lab.Cmd{Args: append(withoutClock[:len(withoutClock):len(withoutClock)], busybox(t, s.root), "-n", "-l", "-d", "-d", "-d")})
	s.follows(said, "stratum 1 reference 0.0.0.0 leap none error <nil> off true")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.client.Write("/testdata/cluster.yaml", text); err != nil {
		t.Fatal(err)
	}
	out, err := s.client.RunCmd(t.Context(), lab.Cmd{Args: []string{self, "-test.run=^TestBusyBoxIsASource$", "-test.v", "-test.timeout=5m"}, Env: []string{busyboxSourceEnv + "=10.1.0.99:123"}})
	if err == nil && !strings.Contains(out, "--- PASS: TestBusyBoxIsASource") {
		err = fmt.Errorf("it ran no test")
	}
	if err != nil {
		t.Fatalf("%v\n%s\nBusyBox says: %s", err, out, said())
	}
}

// follows waits until a daemon on the client's host answers the discipline's
// question with that.
func (s *site) follows(said func() string, want string) {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.eventually("it answers as a source", func() error {
		out, err := s.client.RunCmd(s.t.Context(), lab.Cmd{Args: []string{self}, Env: []string{askEnv + "=10.1.0.99:123"}})
		if err != nil {
			return fmt.Errorf("%w: %s; it says: %s", err, out, said())
		}
		if err := holds(out, want); err != nil {
			return fmt.Errorf("%w; it says: %s", err, said())
		}
		return nil
	})
}

// BusyBox's ntpd ends when it may not steer a clock. Here it may: it has a virtual
// machine, whose clock is a hundred seconds ahead of the server's machine. It
// steps it to the server's, keeps it, and is a source itself.
func TestBusyBoxSetsItsClockByTheServerAndIsASource(t *testing.T) {
	program, binary := busybox(t, peers(t)), vm.TestBinary(t)
	wire := vm.NewWire()
	machines := vm.NewTests(t,
		vm.Options{Name: "server", CPUs: 1, NICs: []vm.NIC{vm.On(wire, "10.1.0.1/24")}, Expose: []string{binary}},
		vm.Options{Name: "client", CPUs: 1, NICs: []vm.NIC{vm.On(wire, "10.1.0.99/24")}, Expose: []string{program}})
	server, client := machines[0], machines[1]
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Write(t.Context(), "/cluster.yaml", text); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Start(vm.Cmd{Args: []string{binary}, Env: []string{serveEnv + "=/cluster.yaml"}}); err != nil {
		t.Fatal(err)
	}
	run := func(m *vm.Machine, c vm.Cmd) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return m.RunCmd(ctx, c)
	}
	// asked waits until the server's machine gets that answer from an address.
	asked := func(what, address, want string) {
		t.Helper()
		var last error
		defer func() {
			if t.Failed() {
				t.Log(last)
			}
		}()
		eventually(t, what, func() bool {
			out, err := run(server, vm.Cmd{Args: []string{binary}, Env: []string{askEnv + "=" + address}})
			if err == nil {
				err = holds(out, want)
			}
			last = err
			return err == nil
		})
	}
	asked("the server serves", "10.1.0.1:123", "stratum 4")
	if out, err := run(client, vm.Cmd{Args: []string{"sh", "-c", "date -s '+100 seconds' && " + program + " -n -q -p 10.1.0.1 2>&1"}}); err != nil || !strings.Contains(out, "(offset -100.") && !strings.Contains(out, "(offset -99.") {
		t.Fatalf("it does not set its clock back by 100 s: %v: %s", err, out)
	}
	if _, err := client.Start(vm.Cmd{Args: []string{program, "-n", "-l", "-d", "-d", "-p", "10.1.0.1"}}); err != nil {
		t.Fatal(err)
	}
	// Its clock is within a second of the one of whoever asks, which is the server's.
	asked("it answers as a source", "10.1.0.99:123", "stratum 5 reference 10.1.0.1 leap none error <nil> off true")
}

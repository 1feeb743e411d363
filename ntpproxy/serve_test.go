package ntpproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/clock"
	"holdfast/internal/ntp"
	"holdfast/lab/stall"
)

// atMost is how long is waited for what comes soon or never, on a machine that is
// slow and stands still for seconds now and then.
const atMost = 2 * time.Minute

// eventually polls until the condition holds, atMost.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond) // who polls without a pause takes a processor from those who are waited for
	defer tick.Stop()
	for started := time.Now(); !holds(); <-tick.C {
		if time.Since(started) > atMost {
			t.Fatalf("%s: not within %v", what, atMost)
		}
	}
}

// ask asks from a connected socket, which takes no reply from elsewhere. The
// kernel may lose a datagram, also on loopback: one that the server never saw
// is sent again, and that is said. One that it saw must be answered.
func (f *fixture) ask(t testing.TB, server netip.AddrPort) ntp.Answer {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 100)
	for range 3 {
		before, left := f.received(t), time.Now()
		_ = conn.SetDeadline(left.Add(20 * time.Second))
		if _, err := conn.Write(request(nil)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			if f.received(t) > before {
				t.Fatalf("%v took the request and did not answer: %v", server, err)
			}
			t.Logf("%v: %v: the request did not arrive, asked again", server, err)
			continue
		}
		a, err := ntp.Match(buf[:n], 0x1234567890abcdef, left, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	t.Fatalf("%v: none of three requests arrived", server)
	return ntp.Answer{}
}

// received is how many datagrams the server took, whatever became of them.
func (f *fixture) received(t testing.TB) (sum float64) {
	t.Helper()
	for o := range outcomes {
		sum += f.counted(t, outcome(o))
	}
	return sum
}

func TestTimeIsServedOnEveryKindOfAddress(t *testing.T) {
	for _, test := range []struct{ listen, ask string }{
		{"127.0.0.1:0", "127.0.0.1"}, {"0.0.0.0:0", "127.0.0.53"}, {"[::1]:0", "::1"}, {"[::]:0", "::1"},
	} {
		listen := netip.MustParseAddrPort(test.listen)
		if listen.Addr().Is6() && !hasIPv6() {
			t.Logf("listening on %s: this machine has no IPv6", listen)
			continue
		}
		f := newFixture(t, testCluster(t), test.listen)
		at := f.serve(t)
		a := f.ask(t, netip.AddrPortFrom(netip.MustParseAddr(test.ask), at.Port()))
		// Client and server read one clock: the true offset is 0.
		if !a.Synchronised() || a.Offset.Abs() > a.Delay || a.Delay < 0 {
			t.Errorf("on %s: offset %v, delay %v, stratum %d", listen, a.Offset, a.Delay, a.Stratum)
		}
	}
}

func hasIPv6() bool {
	conn, err := net.ListenPacket("udp6", "[::1]:0")
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// lookWithin is how long the server may take to see what became of the kernel's
// clock, at which it looks every second.
const lookWithin = 3 * time.Second

// looks waits until the server serves a stratum, and judges how long that took
// from a change on, without the machine's stalls.
func (f *fixture) looks(t *testing.T, machine *stall.Watch, changed time.Time, what string, stratum uint8) {
	t.Helper()
	eventually(t, what, func() bool { return f.server.Standing().Stratum == stratum })
	machine.Judge(t, what, lookWithin, changed, time.Now())
}

func TestLostSynchronisationIsServedAndACondition(t *testing.T) {
	machine := stall.Test(t, "")
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	at := f.serve(t)
	if a := f.ask(t, at); a.Stratum != 4 || len(f.board.Conditions()) != 0 {
		t.Errorf("stratum %d, conditions %v", a.Stratum, f.board.Conditions())
	}
	for name, state := range map[string]*clock.State{"nobody sets the clock": {}, "the kernel fails": nil} {
		// The server looks each second: one look more beside it would be none of
		// its own, and may be overtaken by one that began before.
		changed := time.Now()
		f.kernel.Store(state)
		f.looks(t, machine, changed, name+": the server sees it", 0)
		eventually(t, name+": clients are told", func() bool {
			a := f.ask(t, at)
			return a.Leap == ntp.LeapUnknown && a.Stratum == 0
		})
		eventually(t, name+": it is a condition", func() bool {
			c := f.board.Conditions()
			return len(c) == 1 && c[0].Name == conditionUnsynchronised
		})
		changed = time.Now()
		f.kernel.Store(&synchronised)
		f.looks(t, machine, changed, name+": the kernel's clock is looked at again", 4)
		eventually(t, name+": clients are told that it is kept again", func() bool { return f.ask(t, at).Stratum == 4 })
		eventually(t, name+": the condition ends", func() bool { return len(f.board.Conditions()) == 0 })
	}
}

func TestNewClusterFileIsFollowedAtOnce(t *testing.T) {
	machine := stall.Test(t, "")
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	at := f.serve(t)
	changed := time.Now()
	f.server.SetFile(testCluster(t, "deny: [192.0.2.66/32]", "deny: [127.0.0.1/32]\n  stratum: 7"))
	conn, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(atMost))
	buf := make([]byte, 100)
	if _, err := conn.Write(request(nil)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_, err = ntp.Match(buf[:n], 0x1234567890abcdef, time.Now(), time.Now())
	if kiss, ok := errors.AsType[*ntp.KissError](err); !ok || kiss.Code != ntp.KissDeny {
		t.Errorf("denied now, and answered with %v", err)
	}
	f.looks(t, machine, changed, "clients are told the new stratum at the next look", 7)
}

func TestPortInUseIsAnErrorThatSaysWhatToDo(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f := newFixture(t, testCluster(t), "127.0.0.1:0", conn.LocalAddr().String())
	err = f.server.Run(context.Background(), func() { t.Error("ready") })
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "port 0") {
		t.Errorf("Run = %v", err)
	}
}

func TestRunCanBeRepeatedAndLeavesNothing(t *testing.T) {
	machine := stall.Test(t, "") // before the goroutines are counted: its own last
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	before := runtime.NumGoroutine()
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		if err := f.server.Run(ctx, cancel); err != nil {
			t.Fatal(err)
		}
	}
	ended := time.Now()
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	machine.Judge(t, "the end of the goroutines", endsWithin, ended, time.Now())
	if addrs := f.server.Addrs(); len(addrs) != 0 {
		t.Errorf("still listening on %v", addrs)
	}
}

// After a power failure every node asks at once: iburst, eight requests in a
// row. Each of 2,000 clients has an address of its own in 127.0.0.0/8.
func TestBootStormOfTheWholeClusterIsServedInSeconds(t *testing.T) {
	const clients, requests, parallel = 2000, 8, 50
	machine := stall.Test(t, "")
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	at := f.serve(t)
	started := time.Now()
	todo := make(chan int)
	var group sync.WaitGroup
	for range parallel {
		group.Go(func() {
			for i := range todo {
				if err := iburst(at, fmt.Sprintf("127.1.%d.%d", i/250, 1+i%250), requests); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range clients {
		todo <- i
	}
	close(todo)
	group.Wait()
	ended := time.Now()
	t.Logf("%d clients, %d requests each: %v", clients, requests, ended.Sub(started))
	machine.Judge(t, "to serve them all", 10*time.Second, started, ended)
	if n := f.counted(t, served); n < clients*requests {
		t.Errorf("%v served", n)
	}
}

// iburst asks from an address, and asks again what was not answered within a
// second, as a client does.
func iburst(server netip.AddrPort, from string, requests int) error {
	conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 100)
	for lost := 0; requests > 0; {
		if _, err := conn.Write(request(nil)); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(buf)
		if err != nil {
			if lost++; lost > 8 {
				return fmt.Errorf("%s: %w", from, err)
			}
			continue
		}
		if _, err := ntp.Match(buf[:n], 0x1234567890abcdef, time.Now(), time.Now()); err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
		requests--
	}
	return nil
}

func TestMetricsPassTheLinterAndStandInTheREADME(t *testing.T) {
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	f.ask(t, f.serve(t))
	f.server.metrics.offsets.WithLabelValues("fbservice2")
	problems, err := testutil.GatherAndLint(f.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	families, _ := f.registry.Gather()
	for _, family := range families {
		if !strings.Contains(string(readme), "`"+family.GetName()+"`") {
			t.Errorf("README.md lacks %s", family.GetName())
		}
	}
	for o := range outcomes {
		if !strings.Contains(string(readme), "`"+outcome(o).String()+"`") {
			t.Errorf("README.md lacks the outcome %s", outcome(o))
		}
	}
}

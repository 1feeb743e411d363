package ntpproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// urgedEnv makes this test binary a server that counts signals to yield.
const urgedEnv = "NTPPROXY_TEST_URGED"

// Go's monitor tells a goroutine to yield by a signal to its thread. It must not
// take a worker that slept in the kernel for one that computes: the signal falls
// into the reply, between the kernel's two stamps. The server is a process of its
// own, in which nothing else runs.
func TestReplyAfterAPauseIsNotInterruptedByGosMonitor(t *testing.T) {
	if os.Getenv(urgedEnv) != "" {
		countSignals(t)
		return
	}
	server := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	server.Env = append(os.Environ(), urgedEnv+"=1", "GOMAXPROCS=2")
	stdin, err := server.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Wait() }()
	defer stdin.Close()
	var at string
	if _, err := fmt.Fscanln(stdout, &at); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	signals := func() (n int) { // so far
		if _, err := stdin.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscanln(stdout, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	const wanted = 40
	buf, pause := make([]byte, 100), time.NewTicker(25*time.Millisecond) // the monitor's patience is 10 ms
	defer pause.Stop()
	// A machine that others use takes the processor away for 10 ms at times, and
	// who comes back is rightly told to yield: such requests don't count, nor does
	// the one after, to which a signal may be reckoned that was late.
	undisturbed, urged, before, busy := 0, 0, signals(), true
	for deadline := time.Now().Add(2 * atMost); undisturbed < wanted && time.Now().Before(deadline); {
		<-pause.C
		_ = conn.SetDeadline(time.Now().Add(atMost))
		sent := time.Now()
		if _, err := conn.Write(request(nil)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(buf); err != nil {
			t.Fatal(err)
		}
		was, now := busy, signals()
		if busy = time.Since(sent) > 5*time.Millisecond; !was && !busy {
			undisturbed++
			urged += now - before
		}
		before = now
	}
	t.Logf("%d signals for %d requests", urged, undisturbed)
	if undisturbed < wanted || urged > undisturbed/4 {
		t.Errorf("%d signals for %d requests, want %d requests that take less than 5 ms within %v", urged, undisturbed, wanted, 2*atMost)
	}
}

// countSignals serves until the standard input ends, and says for each byte of it
// how many signals there were.
func countSignals(t *testing.T) {
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	f.server.now = func() time.Time { // a reply takes so long that the monitor looks in the middle of it
		from := time.Now()
		for time.Since(from) < 500*time.Microsecond {
		}
		return time.Now()
	}
	at := f.serve(t)
	urged := make(chan os.Signal, 10_000)
	signal.Notify(urged, syscall.SIGURG)
	fmt.Println(at)
	// Not by Go's poller, which would have a thread of its own awake.
	for one := make([]byte, 1); ; {
		if n, _ := syscall.Read(0, one); n <= 0 {
			return
		}
		fmt.Println(len(urged))
	}
}

// withProcessors runs a test as on a machine of n processors.
func withProcessors(t *testing.T, n int) {
	had := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(had) })
}

func TestOneProcessorIsSparedWhileServing(t *testing.T) {
	withProcessors(t, 1)
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	while := 0
	if err := f.server.Run(ctx, func() { while = runtime.GOMAXPROCS(0); cancel() }); err != nil {
		t.Fatal(err)
	}
	if after := runtime.GOMAXPROCS(0); while != fewestProcessors || after != 1 {
		t.Errorf("%d processors while it serves, %d after: want %d, and 1 as before", while, after, fewestProcessors)
	}
}

func TestTwoProcessorsShareASocket(t *testing.T) {
	for processors, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 2, 7: 4, 64: 32} {
		if got := socketsFor(processors); got != want {
			t.Errorf("%d sockets for %d processors, want %d", got, processors, want)
		}
	}
	withProcessors(t, 4)
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	sockets, err := f.server.listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sockets {
		defer s.conn.Close()
		if at := s.conn.LocalAddr().(*net.UDPAddr).AddrPort(); at != s.addr {
			t.Errorf("a socket on %v, want all on %v", at, s.addr)
		}
	}
	if len(sockets) != 2 || sockets[0].addr != sockets[1].addr {
		t.Errorf("%d sockets for 4 processors: %v", len(sockets), sockets)
	}
}

// The kernel spreads clients over the sockets of an address: each has somebody
// who answers.
func TestEverySocketOfAnAddressAnswers(t *testing.T) {
	withProcessors(t, 4)
	f := newFixture(t, testCluster(t), "127.0.0.1:0")
	at := f.serve(t)
	for range 32 { // none falls to one of the two with a chance of 1 in 2^31
		f.ask(t, netip.AddrPortFrom(at.Addr(), at.Port()))
	}
	if n := f.counted(t, served); n < 32 {
		t.Errorf("%v served", n)
	}
}

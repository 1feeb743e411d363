package sockopt_test

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// own is an address of loopback, any port of it, that no other package's tests send
// to: what they say to a server that has ended would come to the next that the
// kernel gives its port.
const own = "127.83.79.67:0"

// queued calls send and returns once all datagrams that it sent over loopback are
// in their sockets, in that order. Each waits in a queue of the processor that it
// was sent on, mostly for no longer than the call takes, but where others keep the
// processor busy it stays there, and one that is sent on another goes past it. So
// all are sent on one, and behind them one that is waited for.
func queued(t *testing.T, send func()) {
	t.Helper()
	last, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	// Where the test ends in between the thread ends with it.
	runtime.LockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := range len(all) * 64 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	send()
	if _, err := last.WriteToUDPAddrPort([]byte("last"), addrOf(last)); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedSetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	runtime.UnlockOSThread()
	_ = last.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := last.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
}

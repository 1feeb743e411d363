package sockopt_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"holdfast/internal/kernel/sockopt"
)

// echoing answers every datagram with itself until the test ends.
func echoing(t *testing.T, network, address string, stamp bool, seen func(sockopt.Datagram), departed func([]byte, int64)) netip.AddrPort {
	t.Helper()
	conn, err := listen(t, network, address, sockopt.PacketInfo, sockopt.Timestamps)
	if err != nil {
		if network == "udp6" && os.Getenv("CI") == "" {
			t.Skip("no IPv6 here")
		}
		t.Fatal(err)
	}
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	b, err := sockopt.NewStamped(conn, 8, 100, departed)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			n, err := b.Receive()
			if err != nil {
				ended <- err
				return
			}
			for i := range n {
				d := b.Datagram(i)
				if seen != nil {
					seen(d)
				}
				b.Prepare(i, d.Payload, stamp)
				if err := b.Send(i); err != nil {
					t.Errorf("reply to %v: %v", d.From, err)
				}
				b.ReadDepartures()
			}
		}
	}()
	t.Cleanup(func() {
		b.Stop()
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("Receive ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Stop does not end Receive")
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return at
}

// exchange sends from a connected socket, which takes no reply from elsewhere.
func exchange(t *testing.T, to netip.AddrPort, message string) (from netip.AddrPort) {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 200)
	if _, err := conn.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != message {
		t.Fatalf("%v answered %q, error %v", to, buf[:n], err)
	}
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestBatchAnswersFromTheAddressThatWasAskedAndKnowsTheTimes(t *testing.T) {
	for _, test := range []struct{ network, listen, ask string }{
		{"udp4", "127.0.0.1:0", "127.0.0.1"},
		{"udp4", "0.0.0.0:0", "127.0.0.53"},
		{"udp6", "[::]:0", "::1"},
	} {
		t.Run(test.listen, func(t *testing.T) {
			seen := make(chan sockopt.Datagram, 1)
			type departure struct {
				packet []byte
				left   int64
			}
			departures := make(chan departure, 100)
			at := echoing(t, test.network, test.listen, true, func(d sockopt.Datagram) {
				if string(d.Payload) == "hello" { // not a stranger's, who meant the port's last user
					seen <- d
				}
			}, func(packet []byte, left int64) {
				select {
				case departures <- departure{bytes.Clone(packet), left}:
				default: // nobody waits for so many, and the answers must go on
				}
			})
			ask := netip.MustParseAddr(test.ask)
			var before int64
			var from netip.AddrPort
			var d sockopt.Datagram
			// The kernel begins to take times some moments after it was asked to.
			for started := time.Now(); d.Arrived == 0 && time.Since(started) < time.Minute; {
				for len(departures) > 0 { // of an exchange before
					<-departures
				}
				before = time.Now().UnixNano()
				from = exchange(t, netip.AddrPortFrom(ask, at.Port()), "hello")
				d = <-seen
			}
			if d.From != from || d.To != ask {
				t.Errorf("from %v to %v, want from %v to %v", d.From, d.To, from, ask)
			}
			if d.Arrived < before || d.Arrived > time.Now().UnixNano() {
				t.Errorf("arrived at %d, asked at %d", d.Arrived, before)
			}
			var gone departure
			for gone = <-departures; gone.left < before; {
				gone = <-departures
			}
			if gone.left < d.Arrived || !bytes.HasSuffix(gone.packet, []byte("hello")) {
				t.Errorf("%q left %d ns after it arrived", gone.packet, gone.left-d.Arrived)
			}
		})
	}
}

func TestBatchReceivesManyAtOnceAndCutsWhatIsLong(t *testing.T) {
	conn, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	at := conn.LocalAddr().String()
	b, err := sockopt.NewStamped(conn, 4, 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	client, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	queued(t, func() {
		for _, length := range []int{0, 5, 10, 50} {
			if _, err := client.Write(make([]byte, length)); err != nil {
				t.Fatal(err)
			}
		}
	})
	n, err := b.Receive()
	if err != nil || n != 4 {
		t.Fatalf("received %d, error %v", n, err)
	}
	for i, want := range []int{0, 5, 10, 10} {
		if d := b.Datagram(i); len(d.Payload) != want || d.To.IsValid() || d.Arrived != 0 {
			t.Errorf("datagram %d: %d bytes to %v at %d, want %d bytes and no more known", i, len(d.Payload), d.To, d.Arrived, want)
		}
	}
}

func TestStampedDoesNotAllocate(t *testing.T) {
	conn, err := listen(t, "udp4", own, sockopt.PacketInfo, sockopt.Timestamps)
	if err != nil {
		t.Fatal(err)
	}
	at := conn.LocalAddr().String()
	b, err := sockopt.NewStamped(conn, 4, 100, func([]byte, int64) {})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	client, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	message := []byte("hello")
	if n := testing.AllocsPerRun(100, func() {
		_, _ = client.Write(message)
		if n, err := b.Receive(); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		b.Prepare(0, b.Datagram(0).Payload, true)
		if err := b.Send(0); err != nil {
			t.Fatal(err)
		}
		b.ReadDepartures()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

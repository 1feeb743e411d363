package sockopt_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/kernel/sockopt"
)

func TestTheKernelSaysWhoSentADatagram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	config := net.ListenConfig{Control: sockopt.PassCredentials}
	packets, err := config.ListenPacket(t.Context(), "unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	sender, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	if _, err := sender.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = packets.SetReadDeadline(time.Now().Add(time.Minute))
	room, oob := make([]byte, 100), make([]byte, sockopt.CredentialsRoom())
	n, control, _, _, err := packets.(*net.UnixConn).ReadMsgUnix(room, oob)
	if err != nil || string(room[:n]) != "hello" {
		t.Fatalf("%q, %v", room[:n], err)
	}
	who, ok := sockopt.SenderCredentials(oob[:control])
	if !ok || who.PID != os.Getpid() || int(who.UID) != os.Getuid() || int(who.GID) != os.Getgid() {
		t.Errorf("%+v, %v", who, ok)
	}
	for _, cut := range []int{0, 1, 15, 20} { // of a header of 16 bytes and 12 of credentials
		if who, ok := sockopt.SenderCredentials(oob[:cut]); ok {
			t.Errorf("of %d bytes: %+v", cut, who)
		}
	}
}

// connected is both ends of a connection, until the test ends.
func connected(t *testing.T) (conn, other net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	other, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return conn, other
}

// TestUnackedCountsWhatTheOtherKernelLacks: an end that reads nothing lets its
// window close, and the rest stays here until it reads.
func TestUnackedCountsWhatTheOtherKernelLacks(t *testing.T) {
	conn, other := connected(t)
	tcp := conn.(*net.TCPConn)
	written := 0
	began := time.Now()
	for block := make([]byte, 1<<20); ; {
		_ = conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := conn.Write(block)
		written += n
		if err == nil || n > 0 {
			continue
		}
		// The way is full, or this process stood still and did not even try.
		if left, err := sockopt.Unacked(tcp); err != nil || left > 0 || time.Since(began) > time.Minute {
			break
		}
	}
	if n, err := sockopt.Unacked(tcp); err != nil || n <= 0 || n > written {
		t.Fatalf("%d of %d bytes, %v", n, written, err)
	}
	room := make([]byte, 1<<20)
	_ = other.SetReadDeadline(time.Now().Add(time.Minute))
	for read := 0; read < written; {
		n, err := other.Read(room)
		if read += n; err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		n, err := sockopt.Unacked(tcp)
		if err == nil && n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("all was read, and %d bytes are unacknowledged, %v", n, err)
		}
	}
}

// TestUnreadCountsWhatNobodyHasRead.
func TestUnreadCountsWhatNobodyHasRead(t *testing.T) {
	conn, other := connected(t)
	counts := func(want int) {
		t.Helper()
		if n, err := sockopt.Unread(other.(*net.TCPConn)); err != nil || n != want {
			t.Errorf("%d bytes, %v; want %d", n, err, want)
		}
	}
	counts(0)
	if _, err := conn.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Read(make([]byte, 30)); err != nil { // it waits until they are there
		t.Fatal(err)
	}
	counts(70)
}

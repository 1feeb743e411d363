package sockopt_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/kernel/sockopt"
)

// Pauses: never is one that no test waits for, and within is when it would be
// noticed.
const (
	never  = time.Hour
	within = time.Minute
)

// moderated is a Moderated of three datagrams a call with room for a pause, and
// a client of it.
func moderated(t *testing.T, size int, pause time.Duration) (*sockopt.Moderated, *net.UDPConn) {
	t.Helper()
	conn, err := listen(t, "udp4", own, sockopt.ReceiveBuffer(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	room := 0
	if err := raw.Control(func(fd uintptr) { room, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if room < 16<<20 {
		if os.Getenv("CI") != "" {
			t.Fatalf("a receive buffer has %d bytes at most; run as root, or set net.core.rmem_max to 16777216", room)
		}
		t.Skip("needs CAP_NET_ADMIN, or net.core.rmem_max of 8 MiB")
	}
	return moderate(t, conn, size, pause)
}

func moderate(t *testing.T, conn *net.UDPConn, size int, pause time.Duration) (*sockopt.Moderated, *net.UDPConn) {
	t.Helper()
	at := addrOf(conn)
	m, err := sockopt.NewModerated(conn, 3, size, pause)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return m, client
}

// send sends datagrams, which are all there when it returns.
func send(t *testing.T, client *net.UDPConn, texts ...string) {
	t.Helper()
	queued(t, func() {
		for _, text := range texts {
			if _, err := client.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// receives wants these datagrams of one Receive.
func receives(t *testing.T, m *sockopt.Moderated, want ...string) {
	t.Helper()
	if got := received(t, m); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("received %q, want %q", got, want)
	}
}

// received is what one Receive gives, which does not wait for ever.
func received(t *testing.T, m *sockopt.Moderated) (texts []string) {
	t.Helper()
	late := time.AfterFunc(within, m.Stop)
	n, err := m.Receive()
	if !late.Stop() {
		t.Fatalf("Receive waited, and then gave %d datagrams and %v", n, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		texts = append(texts, string(m.Packet(i)))
	}
	return texts
}

// A lone line is not held back for others that may come: neither the first nor
// one behind it that the socket did not have with it.
func TestModeratedReceivesOneThatComesAloneAtOnce(t *testing.T) {
	m, client := moderated(t, 100, never)
	send(t, client, "a")
	receives(t, m, "a")
	send(t, client, "b")
	receives(t, m, "b")
}

// Where datagrams come thick, the next are looked for once a pause, and all that
// came meanwhile are received together.
func TestModeratedGathersWhatComesThick(t *testing.T) {
	for pause := 500 * time.Millisecond; ; pause *= 2 {
		m, client := moderated(t, 100, pause)
		send(t, client, "a", "b")
		began := time.Now()
		receives(t, m, "a", "b")
		send(t, client, "c")
		sent := make(chan time.Time, 1)
		time.AfterFunc(pause/50, func() {
			_, _ = client.Write([]byte("d"))
			sent <- time.Now()
		})
		got := strings.Join(received(t, m), " ")
		if took := time.Since(began); took < pause {
			t.Errorf("the next were looked for after %v, want %v", took, pause)
		}
		if got == "c d" {
			return
		}
		// The last came too late for the pause when this process stood still.
		if late := (<-sent).Sub(began); late < pause/2 || pause > within {
			t.Fatalf("received %q; the last was sent after %v, in a pause of %v", got, late, pause)
		}
	}
}

// What fills a call is not all that there is: the rest is received at once. The
// end of it is seen without waiting, so that nobody keeps lines for it.
func TestModeratedDoesNotPauseBeforeTheSocketIsEmpty(t *testing.T) {
	m, client := moderated(t, 100, never)
	send(t, client, "a", "b", "c", "d", "e", "f")
	for _, want := range [][]string{{"a", "b", "c"}, {"d", "e", "f"}, {}} {
		receives(t, m, want...)
		if m.More() != (len(want) > 0) {
			t.Errorf("behind %q: more: %v", want, m.More())
		}
	}
}

// A socket that has room for a few hundred datagrams is not left alone: they
// would be lost.
func TestModeratedDoesNotPauseWithoutRoom(t *testing.T) {
	conn, err := listen(t, "udp4", own, sockopt.ReceiveBuffer(200<<10))
	if err != nil {
		t.Fatal(err)
	}
	m, client := moderate(t, conn, 100, never)
	for range 3 {
		send(t, client, "a", "b")
		receives(t, m, "a", "b")
	}
}

// Stop ends a pause and a wait, and what had come by then is not lost. The pause
// is due since two came within one, though each alone.
func TestModeratedStops(t *testing.T) {
	const after = 10 * time.Millisecond
	m, client := moderated(t, 100, never)
	for _, text := range []string{"a", "b"} {
		send(t, client, text)
		receives(t, m, text)
	}
	send(t, client, "c", "d", "e", "f")
	began := time.Now()
	time.AfterFunc(after, m.Stop)
	receives(t, m, "c", "d", "e")
	if took := time.Since(began); took < after {
		t.Errorf("received after %v, before the end of the pause", took)
	}
	receives(t, m, "f")
	if _, err := m.Receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	m, _ = moderated(t, 100, never)
	time.AfterFunc(after, m.Stop)
	late := time.AfterFunc(within, func() { panic("Stop does not end Receive") })
	defer late.Stop()
	if n, err := m.Receive(); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("stopped while it waited: %d, %v", n, err)
	}
	m.Stop()
}

// A sender that goes on does not keep a Moderated from its end.
func TestModeratedEndsUnderLoad(t *testing.T) {
	m, client := moderated(t, 100, 0)
	send(t, client, "a")
	receives(t, m, "a")
	m.Stop()
	for n := 0; ; n++ {
		send(t, client, "b")
		if _, err := m.Receive(); errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil || n > 2000 {
			t.Fatalf("call %d after Stop: %v", n, err)
		}
	}
}

// watching is for what the epolls of this process watch an inode.
func watching(t *testing.T, inode uint64) (events []uint64) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(files) == 0 {
		t.Fatal("no /proc/self/fdinfo", err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // closed meanwhile
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			f := strings.Fields(strings.ReplaceAll(lines.Text(), ":", " "))
			// tfd: 5 events: 2019 data: ... pos:0 ino:1a2b sdev:8
			if len(f) < 10 || f[0] != "tfd" || f[9] != strconv.FormatUint(inode, 16) {
				continue
			}
			mask, err := strconv.ParseUint(f[3], 16, 64)
			if err != nil {
				t.Fatal(lines.Text())
			}
			events = append(events, mask)
		}
	}
	return events
}

// While datagrams gather, and while they are being worked on, the next ones wake
// nobody: the only epoll that knows of the socket is told of none.
func TestModeratedIsNotWokenWhileDatagramsGather(t *testing.T) {
	conn, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	number := inode(t, conn)
	if got := watching(t, number); len(got) != 1 || got[0]&unix.EPOLLIN == 0 {
		t.Fatalf("a socket of net is watched for %x: this test does not see what it should", got)
	}
	m, client := moderate(t, conn, 100, time.Millisecond)
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		for got := watching(t, number); len(got) != 1 || got[0]&unix.EPOLLIN == 0; got = watching(t, number) {
			if t.Context().Err() != nil {
				return
			}
		}
		send(t, client, "a")
	}()
	receives(t, m, "a") // which waited
	<-waits
	if got := watching(t, number); len(got) != 1 || got[0]&unix.EPOLLIN != 0 {
		t.Errorf("the socket is watched for %x, want one epoll, and nothing of EPOLLIN", got)
	}
}

// A datagram of any length comes whole if there is room for it, however small
// those beside it are; and who sent it is known.
func TestModeratedKeepsTheGreatestDatagramWhole(t *testing.T) {
	m, client := moderated(t, 64<<10, 0)
	big := strings.Repeat("0123456789abcde\n", 4095)[:65507] // the greatest of IPv4
	send(t, client, "a", big, "b")
	receives(t, m, "a", big, "b")
	for i := range 3 {
		if m.Cut(i) {
			t.Errorf("datagram %d is taken for a cut one", i)
		}
		if from := m.Client(i); from != client.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("datagram %d is from %v", i, from)
		}
	}
}

func TestModeratedTellsWhatItCut(t *testing.T) {
	m, client := moderated(t, 4, 0)
	send(t, client, "1234", "12345", "1")
	receives(t, m, "1234", "1234", "1")
	if m.Cut(0) || !m.Cut(1) || m.Cut(2) {
		t.Errorf("cut: %v %v %v, want the second", m.Cut(0), m.Cut(1), m.Cut(2))
	}
}

func TestModeratedReceivesOverIPv6(t *testing.T) {
	conn, err := listen(t, "udp", "[::]:0")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no IPv6 here")
	}
	at := addrOf(conn).Port()
	m, six := moderate(t, conn, 100, 0)
	send(t, six, "six")
	receives(t, m, "six")
	if from := m.Client(0); from != six.LocalAddr().(*net.UDPAddr).AddrPort() {
		t.Errorf("from %v, want %v", from, six.LocalAddr())
	}
	four, err := net.Dial("udp4", fmt.Sprint("127.0.0.1:", at))
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	send(t, four.(*net.UDPConn), "four")
	receives(t, m, "four")
	if from := m.Client(0).Addr(); from != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("from %v", from)
	}
}

// Nothing is allocated for a datagram: neither for one that was waited for nor
// for those that a pause gathers.
func TestModeratedDoesNotAllocate(t *testing.T) {
	m, client := moderated(t, 100, 50*time.Microsecond)
	text, due := []byte("x"), make(chan struct{})
	defer close(due)
	go func() {
		for range due {
			_, _ = client.Write(text)
		}
	}()
	for name, prepare := range map[string]func(){
		"waited for": func() { due <- struct{}{} }, // mostly
		"gathered": func() {
			_, _ = client.Write(text)
			_, _ = client.Write(text)
		},
	} {
		allocs := testing.AllocsPerRun(200, func() {
			prepare()
			for more := true; more; {
				more = m.More() // then there may be none
				n, err := m.Receive()
				if n == 0 && !more || err != nil {
					t.Fatal(n, err)
				}
				more = more && n == 0
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

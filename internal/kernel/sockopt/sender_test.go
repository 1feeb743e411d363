package sockopt_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"holdfast/internal/kernel/sockopt"
)

func newSender(t testing.TB, conn *net.UDPConn) *sockopt.Sender {
	t.Helper()
	s, err := sockopt.NewSender(conn)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSentDatagramsArrive(t *testing.T) {
	for network, address := range map[string]string{"udp4": own, "udp6": "[::1]:0"} {
		from, err := listen(t, network, address)
		if err != nil {
			if network == "udp6" {
				continue // no IPv6 here
			}
			t.Fatal(err)
		}
		to, err := listen(t, network, address)
		if err != nil {
			t.Fatal(err)
		}
		oob := sockopt.AppendSource(nil, from.LocalAddr().(*net.UDPAddr).AddrPort().Addr(), 0)
		if err := newSender(t, from).Send([]byte("hello"), oob, to.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		_ = to.SetReadDeadline(time.Now().Add(time.Minute))
		n, client, err := to.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "hello" || client != from.LocalAddr().(*net.UDPAddr).AddrPort() {
			t.Errorf("%s: %q from %v, error %v", network, buf[:n], client, err)
		}
	}
}

func TestSendDoesNotAllocate(t *testing.T) {
	conn, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	s, message, to := newSender(t, conn), []byte("hello"), conn.LocalAddr().(*net.UDPAddr).AddrPort()
	oob := sockopt.AppendSource(nil, to.Addr(), 0)
	if n := testing.AllocsPerRun(100, func() { _ = s.Send(message, oob, to) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSendToAnUnknownZoneIsAnError(t *testing.T) {
	conn, err := listen(t, "udp6", "[::1]:0")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("no IPv6 here")
	}
	err = newSender(t, conn).Send([]byte("hello"), nil, netip.MustParseAddrPort("[fe80::1%nosuch0]:53"))
	if err == nil || !strings.Contains(err.Error(), "zone") {
		t.Errorf("Send = %v", err)
	}
}

// isolated runs f in a network namespace of its own, which ends with the test.
func isolated(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to make a network namespace")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSendNeverWaitsForANeighbourThatDoesNotAnswer(t *testing.T) {
	isolated(t, func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "hft0"}, PeerName: "hft1"}
		address, _ := netlink.ParseAddr("192.0.2.1/24")
		peer := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "hft1"}}
		if err := errors.Join(netlink.LinkAdd(veth), netlink.AddrAdd(veth, address), netlink.LinkSetUp(veth), netlink.LinkSetUp(peer)); err != nil {
			t.Errorf("make a link: %v", err)
			return
		}
		conn, err := listen(t, "udp4", "192.0.2.1:0")
		if err != nil {
			t.Error(err)
			return
		}
		s := newSender(t, conn)
		full, best := 0, time.Hour
		for try := 0; try < 3 && best > 2*time.Second; try++ { // the best counts: the machine may stand still
			started := time.Now()
			for range 2000 {
				if err := s.Send(make([]byte, 100), nil, netip.MustParseAddrPort("192.0.2.9:53")); errors.Is(err, syscall.EAGAIN) {
					full++
				}
			}
			best = min(best, time.Since(started))
		}
		if best > 2*time.Second || full == 0 {
			t.Errorf("2000 datagrams took %v, %d found no room", best, full)
		}
	})
}

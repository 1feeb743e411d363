package sockopt_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/kernel/sockopt"
)

func listen(t *testing.T, network, address string, controls ...sockopt.Control) (*net.UDPConn, error) {
	t.Helper()
	config := net.ListenConfig{Control: sockopt.Chain(controls...)}
	conn, err := config.ListenPacket(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UDPConn), nil
}

func TestReusePortLetsTwoSocketsShareAPort(t *testing.T) {
	first, err := listen(t, "udp4", "127.0.0.1:0", sockopt.ReusePort)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t, "udp4", first.LocalAddr().String()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second socket without the option: got error %v, want EADDRINUSE", err)
	}
	if _, err := listen(t, "udp4", first.LocalAddr().String(), sockopt.ReusePort); err != nil {
		t.Errorf("a second socket with the option: %v", err)
	}
}

func TestFreeBindBindsAnAddressThatTheMachineLacks(t *testing.T) {
	for network, address := range map[string]string{
		"udp4": "203.0.113.77:0",
		"udp6": "[2001:db8::77]:0",
	} {
		if _, err := listen(t, network, address); err == nil {
			t.Fatalf("%s %s: this machine holds a documentation address, the test can't tell anything", network, address)
		} else if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Logf("%s: %v; the family is not usable here", network, err)
			continue
		}
		if _, err := listen(t, network, address, sockopt.FreeBind); err != nil {
			t.Errorf("%s %s: %v", network, address, err)
		}
	}
}

func TestReplyLeavesFromTheAddressThatWasAsked(t *testing.T) {
	server, err := listen(t, "udp4", "0.0.0.0:0", sockopt.PacketInfo)
	if err != nil {
		t.Fatal(err)
	}
	port := server.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.53"), port)

	client, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(asked)) // connected: takes replies from nowhere else
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deadline := time.Now().Add(time.Minute)
	_ = client.SetDeadline(deadline)
	_ = server.SetDeadline(deadline)
	if _, err := client.Write([]byte("who?")); err != nil {
		t.Fatal(err)
	}

	buf, oob := make([]byte, 16), make([]byte, sockopt.PacketInfoSize)
	_, n, _, from, err := server.ReadMsgUDPAddrPort(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	dst, ifindex, ok := sockopt.Destination(oob[:n])
	if !ok || dst != asked.Addr() || ifindex == 0 {
		t.Fatalf("Destination = %v, %d, %v; want %v and loopback's index", dst, ifindex, ok, asked.Addr())
	}
	if _, _, err := server.WriteMsgUDPAddrPort([]byte("me"), sockopt.AppendSource(nil, dst, 0), from); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(buf); err != nil || string(buf[:n]) != "me" {
		t.Fatalf("reply %q, error %v", buf[:n], err)
	}
}

func TestSourceAndDestinationAgree(t *testing.T) {
	for _, s := range []string{"10.1.0.101", "2001:db8::1"} {
		want := netip.MustParseAddr(s)
		oob := sockopt.AppendSource(make([]byte, 0, sockopt.PacketInfoSize), want, 7)
		if len(oob) > sockopt.PacketInfoSize {
			t.Errorf("%s: %d bytes, more than PacketInfoSize", s, len(oob))
		}
		if want.Is4() {
			// What is sent names its source where what is received names
			// the local address; the destination comes after it.
			continue
		}
		got, ifindex, ok := sockopt.Destination(oob)
		if !ok || got != want || ifindex != 7 {
			t.Errorf("%s: Destination = %v, %d, %v", s, got, ifindex, ok)
		}
	}
}

func TestControlMessagesCutShortAreRefused(t *testing.T) {
	whole := sockopt.AppendSource(nil, netip.MustParseAddr("2001:db8::1"), 1)
	for n := range len(whole) - 4 { // the last four bytes are padding
		if addr, _, ok := sockopt.Destination(whole[:n]); ok {
			t.Errorf("%d of %d bytes gave %v", n, len(whole), addr)
		}
	}
}

func TestPacketInfoCostsNoAllocation(t *testing.T) {
	buf := make([]byte, 0, sockopt.PacketInfoSize)
	src := netip.MustParseAddr("2001:db8::1")
	oob := sockopt.AppendSource(nil, src, 1)
	if n := testing.AllocsPerRun(100, func() {
		sockopt.Destination(oob)
		buf = sockopt.AppendSource(buf[:0], src, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDestination(f *testing.F) {
	f.Add(sockopt.AppendSource(nil, netip.MustParseAddr("10.1.0.1"), 1))
	f.Add(sockopt.AppendSource(nil, netip.MustParseAddr("2001:db8::1"), 1))
	f.Fuzz(func(t *testing.T, oob []byte) {
		if addr, _, ok := sockopt.Destination(oob); ok && !addr.IsValid() {
			t.Error("ok without an address")
		}
	})
}

// TestAReceiveBufferIsAsGreatAsAskedForWhoMay: more than net.core.rmem_max, where
// the process has CAP_NET_ADMIN.
func TestAReceiveBufferIsAsGreatAsAskedForWhoMay(t *testing.T) {
	const asked = 16 << 20
	conn, err := listen(t, "udp4", "127.0.0.1:0", sockopt.ReceiveBuffer(asked))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	var failed error
	if err := raw.Control(func(fd uintptr) {
		got, failed = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if may := os.Geteuid() == 0; may && got != 2*asked { // the kernel doubles it (socket(7))
		t.Errorf("%d bytes, want %d", got, 2*asked)
	}
}

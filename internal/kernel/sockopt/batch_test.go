package sockopt_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"holdfast/internal/kernel/sockopt"
)

func newBatch(t testing.TB, conn *net.UDPConn, count int) *sockopt.Batch {
	t.Helper()
	b, err := sockopt.NewBatch(conn, count, 100, 50)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func addrOf(conn *net.UDPConn) netip.AddrPort { return conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func TestBatchAnswersEachSenderWithItsOwn(t *testing.T) {
	for network, address := range map[string]string{"udp4": own, "udp6": "[::1]:0"} {
		server, err := listen(t, network, address)
		if err != nil {
			if network == "udp6" {
				continue // no IPv6 here
			}
			t.Fatal(err)
		}
		var clients []*net.UDPConn
		for range 5 {
			client, err := listen(t, network, address)
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, client)
		}
		queued(t, func() {
			for i, client := range clients {
				if _, err := client.WriteToUDPAddrPort(fmt.Appendf(nil, "hello %d", i), addrOf(server)); err != nil {
					t.Fatal(err)
				}
			}
		})
		b := newBatch(t, server, 3) // fewer than there are datagrams
		for got := 0; got < len(clients); {
			_ = server.SetReadDeadline(time.Now().Add(time.Minute))
			n, err := b.Receive()
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if client := b.Client(i); client != addrOf(clients[got+i]) {
					t.Errorf("%s: datagram %d is from %v, want %v", network, got+i, client, addrOf(clients[got+i]))
				}
				if i%2 == 0 {
					b.Reply(i, append(b.Room(), b.Packet(i)...), sockopt.AppendSource(b.SourceRoom(), addrOf(server).Addr(), 0))
				} else {
					b.Reply(i, b.Packet(i), nil) // copied
				}
			}
			if failed := b.Flush(); failed != 0 {
				t.Errorf("%s: %d replies were not sent", network, failed)
			}
			got += n
		}
		buf := make([]byte, 100)
		for i, client := range clients {
			_ = client.SetReadDeadline(time.Now().Add(time.Minute))
			n, from, err := client.ReadFromUDPAddrPort(buf)
			if err != nil || string(buf[:n]) != fmt.Sprintf("hello %d", i) || from != addrOf(server) {
				t.Errorf("%s: client %d got %q from %v, error %v", network, i, buf[:n], from, err)
			}
		}
	}
}

func TestBatchTellsWhichAddressWasAsked(t *testing.T) {
	server, err := listen(t, "udp4", "0.0.0.0:0", sockopt.PacketInfo)
	if err != nil {
		t.Fatal(err)
	}
	client, err := listen(t, "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.53"), addrOf(server).Port())
	if _, err := client.WriteToUDPAddrPort([]byte("x"), asked); err != nil {
		t.Fatal(err)
	}
	b := newBatch(t, server, 4)
	_ = server.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := b.Receive(); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	addr, _, ok := sockopt.Destination(b.Control(0))
	if !ok || addr != asked.Addr() {
		t.Errorf("destination %v, %v", addr, ok)
	}
	b.Reply(0, []byte("y"), sockopt.AppendSource(nil, addr, 0))
	if failed := b.Flush(); failed != 0 {
		t.Error("the reply was not sent")
	}
	buf := make([]byte, 10)
	_ = client.SetReadDeadline(time.Now().Add(time.Minute))
	if n, from, err := client.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "y" || from != asked {
		t.Errorf("%q from %v, error %v", buf[:n], from, err)
	}
}

func TestBatchPassesOverWhatCannotBeSent(t *testing.T) {
	server, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	client, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	queued(t, func() {
		for range 3 {
			if _, err := client.WriteToUDPAddrPort([]byte("x"), addrOf(server)); err != nil {
				t.Fatal(err)
			}
		}
	})
	b := newBatch(t, server, 3)
	if n, err := b.Receive(); n != 3 || err != nil {
		t.Fatalf("received %d, %v", n, err)
	}
	foreign := sockopt.AppendSource(nil, netip.MustParseAddr("192.0.2.9"), 0) // no address of ours
	b.Reply(0, []byte("a"), nil)
	b.Reply(1, []byte("b"), foreign)
	b.Reply(2, []byte("c"), nil)
	if failed := b.Flush(); failed != 1 {
		t.Errorf("%d failed, want the one in the middle", failed)
	}
	buf := make([]byte, 10)
	var got []byte
	for range 2 {
		_ = client.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, []byte("ac")) {
		t.Errorf("got %q", got)
	}
}

func TestBatchEndsWhenTheSocketIsClosed(t *testing.T) {
	server, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	b, ended := newBatch(t, server, 3), make(chan error, 1)
	go func() {
		_, err := b.Receive()
		ended <- err
	}()
	_ = server.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(time.Minute):
		t.Error("waits for ever")
	}
}

func TestBatchDoesNotAllocate(t *testing.T) {
	server, err := listen(t, "udp4", own)
	if err != nil {
		t.Fatal(err)
	}
	b, self := newBatch(t, server, 3), addrOf(server)
	if _, err := server.WriteToUDPAddrPort([]byte("x"), self); err != nil { // to itself, for ever
		t.Fatal(err)
	}
	allocs := testing.AllocsPerRun(100, func() {
		n, err := b.Receive()
		if n != 1 || err != nil {
			t.Fatal(n, err)
		}
		b.Reply(0, append(b.Room(), b.Packet(0)...), sockopt.AppendSource(b.SourceRoom(), self.Addr(), 0))
		if b.Flush() != 0 {
			t.Fatal("not sent")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

package sockopt

import (
	"net"
	"testing"
	"time"
)

// On loopback a datagram leaves within the call that sends it.
func TestKernelTellsWhenADatagramLeft(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		t.Run(network, func(t *testing.T) {
			address := map[string]string{"udp4": "127.0.0.1:0", "udp6": "[::1]:0"}[network]
			server, err := net.ListenPacket(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			dialer := net.Dialer{Control: Departures}
			conn, err := dialer.Dial(network, server.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			raw, err := conn.(*net.UDPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if left := Departed(raw); left != 0 {
				t.Errorf("before anything was sent: left at %d", left)
			}
			for range 3 {
				before := time.Now().UnixNano()
				if _, err := conn.Write([]byte("ask")); err != nil {
					t.Fatal(err)
				}
				after := time.Now().UnixNano()
				if left := Departed(raw); left < before || left > after {
					t.Errorf("left at %d, sent between %d and %d", left, before, after)
				}
			}
			if left := Departed(raw); left != 0 {
				t.Errorf("told twice: left at %d", left)
			}
			// What the kernel told does not stand in the way of a reply.
			if _, err := conn.Write([]byte("ask")); err != nil {
				t.Fatal(err)
			}
			if _, err := server.WriteTo([]byte("reply"), conn.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(make([]byte, 100)); err != nil || n != len("reply") {
				t.Errorf("read %d bytes, %v", n, err)
			}
		})
	}
}

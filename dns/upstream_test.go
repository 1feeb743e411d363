package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// fakeUpstream is a forwarder that does what a test wants.
type fakeUpstream struct {
	addr  netip.AddrPort
	asked atomic.Int64 // over UDP
}

// reply gives the datagrams to answer a packet with.
type reply func(packet []byte, from net.Addr, transport string) [][]byte

func newUpstream(t testing.TB, answer reply) *fakeUpstream {
	t.Helper()
	listener, conn := listenBoth(t)
	u := &fakeUpstream{addr: listener.Addr().(*net.TCPAddr).AddrPort()}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			u.asked.Add(1)
			for _, out := range answer(bytes.Clone(buf[:n]), from, overUDP) {
				_, _ = conn.WriteTo(out, from)
			}
		}
	})
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { u.serveOne(c, answer) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		_ = conn.Close()
		serving.Wait()
	})
	return u
}

// listenBoth takes a port that is free for both transports: what is free for one
// may be some client's for the other.
func listenBoth(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	for try := 1; ; try++ {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.ListenPacket("udp", listener.Addr().String())
		if err == nil {
			return listener, conn
		}
		_ = listener.Close()
		if try == freePortTries || !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

func (u *fakeUpstream) serveOne(c net.Conn, answer reply) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return
	}
	for _, out := range answer(buf, c.RemoteAddr(), overTCP) {
		_, _ = c.Write(framed(out))
	}
}

// message answers as a server would: change finishes the reply.
func message(change func(m *dns.Msg)) reply {
	return func(packet []byte, _ net.Addr, _ string) [][]byte {
		return [][]byte{made(packet, change)}
	}
}

func made(packet []byte, change func(m *dns.Msg)) []byte {
	q, m := new(dns.Msg), new(dns.Msg)
	if err := q.Unpack(packet); err != nil {
		panic(err)
	}
	m.SetReply(q)
	m.RecursionAvailable = true
	if q.IsEdns0() != nil {
		m.SetEdns0(4096, false)
	}
	change(m)
	wire, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return wire
}

// answering gives n addresses, the last byte of the first being that.
func answering(last byte, n int) func(*dns.Msg) {
	return func(m *dns.Msg) {
		for i := range n {
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
				A:   net.IPv4(198, 51, byte(100+i/256), last+byte(i)),
			})
		}
	}
}

func failing(rcode int) func(*dns.Msg) { return func(m *dns.Msg) { m.Rcode = rcode } }

func silence([]byte, net.Addr, string) [][]byte { return nil }

// relaying returns a server that forwards everything to the upstreams, with
// time enough for each try that a busy machine is not taken for silence.
func relaying(t testing.TB, upstreams ...*fakeUpstream) (*fixture, netip.AddrPort) {
	t.Helper()
	return relayingWithin(t, maxForwardTimeout, upstreams...)
}

// short is how long tests wait for a forwarder that says nothing: longer than a
// busy machine stands still now and then, while another has the answer. A single
// one is asked twice, so that its answer may take up to twice as long.
const short = 4 * time.Second

func relayingWithin(t testing.TB, timeout time.Duration, upstreams ...*fakeUpstream) (*fixture, netip.AddrPort) {
	t.Helper()
	var list []string
	for _, u := range upstreams {
		list = append(list, fmt.Sprintf("%q", u.addr))
	}
	file := testCluster(t, fmt.Sprintf("dns: {forward: {\".\": [%s]}, forward_timeout: %v, cache: {megabytes: 0}}\n", strings.Join(list, ", "), timeout))
	f := newFixtureListening(t, file, newCatalog(t), loopbackPort)
	return f, serve(t, f)
}

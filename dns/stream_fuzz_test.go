package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// onStream puts messages behind their lengths.
func onStream(messages ...[]byte) (stream []byte) {
	for _, m := range messages {
		stream = append(binary.BigEndian.AppendUint16(stream, uint16(len(m))), m...)
	}
	return stream
}

// FuzzConnection sends bytes by TCP to a server whose zones may be
// transferred, with a signature or without: every message that comes back is
// whole, and the connection ends with the client's half of it.
func FuzzConnection(f *testing.F) {
	p := newPrimary(f, "allow: [127.0.0.1], keys: {backup: {algorithm: hmac-sha256, secret: {file: SECRET}}}", "www A 10.1.0.1", "x TXT \"a\"")
	p.server.refresh()
	ask := packet(f, "fbservice1.hpc.example.com", dns.TypeA)
	whole, err := axfr("hpc.example.com").Pack()
	if err != nil {
		f.Fatal(err)
	}
	since := new(dns.Msg).SetIxfr("hpc.example.com.", 7, "a.", "b.")
	part, err := since.Pack()
	if err != nil {
		f.Fatal(err)
	}
	m := axfr("hpc.example.com")
	m.SetTsig("backup.", dns.HmacSHA256, 300, time.Now().Unix())
	signed, _, err := dns.TsigGenerate(m, tsigSecret, "", false)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{onStream(ask), onStream(ask, ask, ask), onStream(whole), onStream(part, ask), onStream(signed), onStream(signed, whole, ask), onStream(ask)[:9], onStream(nil, ask), {0xff, 0xff, 0}} {
		f.Add(seed)
	}
	var group sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	forwarding := newFlights(ctx, &group, p.server)
	f.Cleanup(func() { cancel(); group.Wait() })
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := &scripted{Reader: bytes.NewReader(sent)}
		p.server.serveConn(ctx, c, netip.MustParseAddr("127.0.0.1"), forwarding)
		for got := c.written.Bytes(); len(got) > 0; {
			size := 2 + int(binary.BigEndian.Uint16(got[:2]))
			if size > len(got) {
				t.Fatalf("%d bytes are left of a reply of %d: %x", len(got), size, got)
			}
			reply := new(dns.Msg)
			if err := reply.Unpack(got[2:size]); err != nil || !reply.Response {
				t.Fatalf("a reply is malformed (%v): %x", err, got[:size])
			}
			got = got[size:]
		}
	})
}

// scripted is a connection whose client has sent all that it sends, and reads
// all that it gets.
type scripted struct {
	*bytes.Reader
	mu      sync.Mutex
	written bytes.Buffer
}

func (c *scripted) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written.Write(b)
}

func (c *scripted) Close() error                     { return nil }
func (c *scripted) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// errMalformed is a reply that was meant for us and could not be read.
var errMalformed = errors.New("malformed reply")

// maxForged is how many datagrams that are no reply to our question one try
// puts up with before it gives the forwarder up: someone is guessing.
const maxForged = 64

// ask puts q's question to one server: over UDP from a new socket, whose port
// the kernel chose at random, with a random ID; over TCP when the reply was
// truncated (RFC 7766 §5). It blocks until ctx ends.
func ask(ctx context.Context, server netip.AddrPort, q *query, edns bool) (response, error) {
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	packet := upstreamQuery(id, q, edns)
	wire, err := exchange(ctx, "udp", server, packet, readUDP)
	if err == nil && binary.BigEndian.Uint16(wire[2:])&bitTC != 0 {
		wire, err = exchange(ctx, "tcp", server, packet, readTCP)
	}
	if err != nil {
		return response{}, err
	}
	if binary.BigEndian.Uint16(wire[2:])&bitTC != 0 {
		return response{}, fmt.Errorf("%w: truncated over TCP", errMalformed)
	}
	return readResponse(wire, q)
}

// upstreamQuery is the client's question as we put it. The client's EDNS
// options concern us, not those behind us (RFC 6891 §6.1.1), and stay here.
func upstreamQuery(id [2]byte, q *query, edns bool) []byte {
	b := append(make([]byte, 0, headerSize+len(q.question)+optSize), id[:]...)
	b = binary.BigEndian.AppendUint16(b, bitRD|q.flags&(bitCD|bitAD))
	b = append(b, 0, 1, 0, 0, 0, 0, 0, 0)
	b = append(b, q.question...)
	if edns {
		b[headerSize-1] = 1
		b = appendOPT(b, 0, q.do)
	}
	return b
}

// exchange sends packet on a connection of its own and returns the reply.
// Nothing of it is left when it returns.
func exchange(ctx context.Context, network string, server netip.AddrPort, packet []byte,
	read func(net.Conn, []byte) ([]byte, error)) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	out := packet
	if network == "tcp" {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
	}
	if _, err := conn.Write(out); err != nil {
		return nil, err
	}
	wire, err := read(conn, packet)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("no reply: %w", ctx.Err())
	}
	return wire, err
}

// readUDP waits for the reply to packet. The socket is connected: datagrams
// from elsewhere don't reach it; those with another ID or question are forged
// or late, and are passed over.
func readUDP(conn net.Conn, packet []byte) ([]byte, error) {
	buf := make([]byte, 4096)
	for range maxForged {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if replies(buf[:n], packet) {
			return buf[:n], nil
		}
	}
	return nil, fmt.Errorf("%w: %d datagrams with another ID or question", errMalformed, maxForged)
}

func readTCP(conn net.Conn, packet []byte) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	if !replies(buf, packet) {
		return nil, fmt.Errorf("%w: another ID or question over TCP", errMalformed)
	}
	return buf, nil
}

// replies tells whether wire is a reply to packet: same ID, same question
// (RFC 5452 §4.2). A refusal may leave the question out.
func replies(wire, packet []byte) bool {
	if len(wire) < headerSize || !bytes.Equal(wire[:2], packet[:2]) {
		return false
	}
	flags := binary.BigEndian.Uint16(wire[2:])
	if flags&bitQR == 0 || flags>>opcodeShift&opcodeMask != dns.OpcodeQuery {
		return false
	}
	if binary.BigEndian.Uint16(wire[4:]) == 0 {
		return flags&0xf != dns.RcodeSuccess && flags&0xf != dns.RcodeNameError
	}
	var asked, answered query
	_, _ = asked.parseQuestion(packet)
	_, ok := answered.parseQuestion(wire)
	return ok && binary.BigEndian.Uint16(wire[4:]) == 1 && bytes.Equal(asked.name, answered.name) &&
		asked.kind == answered.kind && asked.class == answered.class
}

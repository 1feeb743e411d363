package check

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"time"

	"holdfast/internal/kernel/sockopt"
)

// Via has a probe's connection go to another place than its definition names,
// by a firewall mark: through the load balancer to one real server, as a
// client's packets go. The zero value changes nothing. It is no part of a file.
type Via struct {
	To   netip.AddrPort
	From netip.Addr // this node's address
	Mark uint32     // needs CAP_NET_ADMIN
}

// dial connects to an address, or by way of v.
func (v Via) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	if v.Mark != 0 {
		address = v.To.String()
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(v.From, 0))
		dialer.Control = sockopt.Mark(v.Mark)
	}
	return dialer.DialContext(ctx, network, address)
}

// Before its identification a server may send other lines (RFC 4253 §4.2).
const (
	maxSSHLine  = 255
	maxSSHLines = 50
)

// sshProbe connects and waits for the server's identification.
type sshProbe struct {
	address string
	via     Via
	limit   time.Duration
}

func (p sshProbe) Probe(ctx context.Context) Result {
	conn, err := p.via.dial(ctx, "tcp", p.address)
	if err != nil {
		return critical("SSH %s: %s", p.address, reason(err, p.limit))
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // an error shows when reading
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	lines := bufio.NewReaderSize(conn, maxSSHLine+2)
	for range maxSSHLines {
		line, err := lines.ReadSlice('\n')
		if id, ok := identification(line); ok {
			return passing("SSH %s: %s", p.address, id)
		}
		if err != nil {
			return critical("SSH %s: connected, but no identification: %s", p.address, reason(err, p.limit))
		}
	}
	return critical("SSH %s: connected, but no identification in %d lines", p.address, maxSSHLines)
}

// identification reads "SSH-protoversion-softwareversion comments" of version
// 2 of the protocol (RFC 4253 §4.2, §5.1).
func identification(line []byte) (id string, ok bool) {
	line, ended := bytes.CutSuffix(line, []byte("\n"))
	text := strings.TrimSuffix(string(line), "\r")
	if !ended || len(text) > maxSSHLine-2 || strings.ContainsFunc(text, isControl) {
		return "", false
	}
	return text, strings.HasPrefix(text, "SSH-2.0-") || strings.HasPrefix(text, "SSH-1.99-")
}

package logrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// maxLine is the greatest syslog message over TCP in bytes; more is cut.
const maxLine = 128 << 10

// streamConn is the connection of a sender of syslog by TCP or TLS. It belongs to one
// goroutine, but for goAway.
type streamConn struct {
	s      *Server
	conn   net.Conn
	via    uint8
	source netip.Addr
	framer syslog.Framer
	buf    []byte // received and not taken apart
	batch  journal.Batch
	keep   *keeper
	// begun: something was taken of it. asked: it is to go elsewhere. Both may be set
	// by different goroutines, and whoever sets the second sees the first.
	begun, asked atomic.Bool
	away         sync.Once
}

// serveStream serves a sender of syslog over TCP or TLS until it leaves, its
// address has gone from this machine, or ctx ends. Nothing is acknowledged: the
// protocol has no word for it.
func (s *Server) serveStream(ctx context.Context, conn net.Conn, via uint8) error {
	c := &streamConn{
		s: s, conn: conn, via: via, source: addrOf(conn.RemoteAddr()), framer: syslog.Framer{Max: maxLine},
		buf: make([]byte, 0, firstBuffer), keep: s.newKeeper(ctx, via),
	}
	session, left := s.sessions.enterStream(ctx, addrOf(conn.LocalAddr()), c.dismiss)
	defer left()
	defer c.keep.end()
	woken := make(chan struct{})
	stop := context.AfterFunc(session, func() {
		defer close(woken)
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	for s.gate.wait(session) == nil {
		switch err := c.receive(session); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && session.Err() == nil:
			return err
		}
	}
	<-woken // else it may still set the deadline for reads
	return c.hearOut(ctx)
}

// receive reads what is there, one byte at least, and has its lines kept. It
// blocks while too much waits for the disk, or until ctx ends.
func (c *streamConn) receive(ctx context.Context) error {
	if len(c.buf) == cap(c.buf) {
		c.buf = append(make([]byte, 0, min(2*cap(c.buf), 2*maxLine)), c.buf...)
	}
	n, failed := c.conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		if c.begun.Store(true); c.asked.Load() {
			c.goAway()
		}
	}
	now, at := time.Now().UnixNano(), 0
	for {
		message, size, err := c.framer.Next(c.buf[at:])
		if err != nil {
			failed = errors.Join(failed, err)
			break
		}
		if at += size; size == 0 {
			break
		}
		if len(message) > 0 {
			c.batch.Add(journal.Record{Time: now, Source: c.source, Input: c.via, Data: message})
		}
	}
	c.buf = append(c.buf[:0], c.buf[at:]...)
	if errors.Is(failed, io.EOF) {
		c.last(now)
	}
	c.s.metrics.cutLines(c.via, &c.framer.Cut)
	c.keep.put(ctx, &c.batch)
	return failed
}

// last takes the last line, which lacks its end.
func (c *streamConn) last(now int64) {
	if len(c.buf) > 0 {
		c.batch.Add(journal.Record{Time: now, Source: c.source, Input: c.via, Data: c.buf})
		c.buf = c.buf[:0]
	}
}

// dismiss asks the sender to go elsewhere, once something was taken of it: rsyslog
// takes a connection that ends before its first line for a failed attempt, and
// passes over what it has for 30 s. It says whether this is the first time, and may
// be called from any goroutine.
func (c *streamConn) dismiss() bool {
	first := !c.asked.Swap(true)
	if c.begun.Load() {
		c.goAway()
	}
	return first
}

// goAway closes our half of the connection, which tells a sender that looks to
// connect anew; rsyslog looks before each line, and sends that by the new
// connection. What comes is read as before. TLS's close_notify is left out, since
// rsyslog looks with recv for an end of the stream, and would find the alert in
// front of it. It doesn't block, and may be called from any goroutine.
func (c *streamConn) goAway() {
	c.away.Do(func() {
		if tcp := below(c.conn); tcp != nil {
			_ = tcp.CloseWrite() // else the sender is gone
		}
	})
}

// hearOut takes what the sender has sent, at the end of the relay or when its
// address has gone, until it is quiet or was heard for long: to close before
// throws away what the kernel has received. While lines may not come, it waits
// there for as long as the relay runs.
func (c *streamConn) hearOut(ctx context.Context) error {
	c.goAway()
	_ = c.s.gate.wait(ctx)
	if c.s.gate.held() != "" {
		return nil
	}
	hearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.s.patience)
	defer cancel()
	var err error
	for err == nil && hearing.Err() == nil {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.s.quiet))
		err = c.receive(hearing)
	}
	c.last(time.Now().UnixNano())
	c.keep.put(hearing, &c.batch)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// put appends a batch that nobody waits for, and empties it.
func (s *Server) put(ctx context.Context, batch *journal.Batch, via uint8, p *promises) error {
	if batch.Len() == 0 {
		return nil
	}
	commit, err := s.journal.Append(context.WithoutCancel(ctx), batch)
	if err == nil {
		p.add(commit, batch.Len())
	}
	s.metrics.input(via).took(batch.Len(), batch.Size())
	batch.Reset()
	return err
}

// Sizes of the UDP input.
const (
	datagrams     = 64
	datagramBytes = 64 << 10 // the greatest that there is
	receiveBuffer = 16 << 20
	debugSeverity = 7
)

// listenUDP opens a socket for each processor on an address.
func (s *Server) listenUDP(ctx context.Context, address string) (list []*net.UDPConn, err error) {
	config := net.ListenConfig{Control: sockopt.Chain(sockopt.ReusePort, sockopt.FreeBind, sockopt.ReceiveBuffer(receiveBuffer))}
	for range runtime.GOMAXPROCS(0) {
		conn, err := config.ListenPacket(ctx, "udp", address)
		if err != nil {
			for _, c := range list {
				_ = c.Close()
			}
			return nil, fmt.Errorf("logrelay: listen: %w", err)
		}
		udp := conn.(*net.UDPConn)
		list = append(list, udp)
		address = udp.LocalAddr().String() // for port 0
	}
	return list, nil
}

// serveUDP takes datagrams until ctx ends.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	packets, err := sockopt.NewBatch(conn, datagrams, datagramBytes, 1) // nothing is answered
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var batch journal.Batch
	promised := promises{lost: s.metrics.lost[viaUDP]}
	defer promised.end()
	for {
		n, err := packets.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("logrelay: udp %v: %w", conn.LocalAddr(), err)
		}
		now, shed := time.Now().UnixNano(), s.gate.shed()
		for i := range n {
			data := packets.Packet(i)
			if shed && syslog.Severity(data) >= debugSeverity {
				s.metrics.shed.Inc()
				continue
			}
			batch.Add(journal.Record{Time: now, Source: packets.Client(i).Addr().Unmap(), Input: viaUDP, Data: data})
		}
		if err := s.put(ctx, &batch, viaUDP, &promised); err != nil {
			return err
		}
	}
}

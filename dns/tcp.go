package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of TCP (RFC 7766 §6.2).
const (
	maxConnections = 512 // of one listener; one more is closed at once
	maxPerClient   = 64  // of these, so that one client leaves room for others
	maxPipelined   = 32  // questions of one connection that wait for a forwarder
	idleTimeout    = 10 * time.Second
	messageTimeout = 3 * time.Second // to receive one message once its length came, or to send one
)

// serveTCP accepts connections until ctx ends and the listener is closed.
func (s *Server) serveTCP(ctx context.Context, listener net.Listener, forwarding *flights, group *sync.WaitGroup) error {
	open := connections{of: map[netip.Prefix]int{}}
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			if !temporary(err) {
				return fmt.Errorf("dns: accept on %v: %w", listener.Addr(), err)
			}
			if !pause(ctx, 10*time.Millisecond) { // out of file descriptors, say
				return nil
			}
			continue
		}
		client := clientOf(conn)
		if !open.add(client) {
			s.metrics.dropped.WithLabelValues("connection").Inc()
			_ = conn.Close()
			continue
		}
		s.metrics.connections.Inc()
		group.Go(func() {
			defer open.remove(client)
			defer s.metrics.connections.Dec()
			s.serveConn(ctx, conn, client, forwarding)
		})
	}
}

func clientOf(conn net.Conn) netip.Addr {
	if peer, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return peer.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// connections counts the open ones of a listener, all and by client.
type connections struct {
	mu  sync.Mutex
	all int
	of  map[netip.Prefix]int
}

// add counts one more, unless that is too many.
func (c *connections) add(client netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	who := owner(client)
	if c.all >= maxConnections || c.of[who] >= maxPerClient {
		return false
	}
	c.all++
	c.of[who]++
	return true
}

func (c *connections) remove(client netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	who := owner(client)
	c.all--
	if c.of[who]--; c.of[who] == 0 {
		delete(c.of, who)
	}
}

// owner is what one client has of the addresses: in IPv6 a whole subnet.
func owner(client netip.Addr) netip.Prefix {
	bits := client.BitLen()
	if client.Is6() {
		bits = 64
	}
	p, _ := client.Prefix(bits) // bits are in range
	return p
}

func temporary(err error) bool {
	var e interface{ Temporary() bool }
	return errors.As(err, &e) && e.Temporary()
}

// pause waits, if there is anything to wait for; not ok when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serveConn answers the questions of one connection, as many as come, until it
// idles, breaks, or ctx ends. Answers of forwarders overtake each other
// (RFC 7766 §7).
func (s *Server) serveConn(ctx context.Context, conn net.Conn, client netip.Addr, forwarding *flights) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	var pending sync.WaitGroup
	defer func() {
		pending.Wait()
		cancel()
		stop()
		_ = conn.Close()
	}()
	c := &stream{conn: conn, reader: bufio.NewReader(conn), slots: make(chan struct{}, maxPipelined)}
	w := s.newWorker(overTCP)
	for {
		packet, err := c.read()
		if err != nil {
			return
		}
		started := time.Now()
		reply, forward := w.handle(c.out[:0], packet, client)
		if c.out = reply; len(reply) > 0 && c.write(reply) != nil {
			return
		}
		w.flush(time.Since(started))
		if w.transfer {
			if s.transfer(ctx, c, packet, client) != nil {
				return
			}
			continue
		}
		if forward == nil {
			if len(reply) == 0 {
				return // not DNS, or not a query: nothing to wait for
			}
			continue
		}
		select {
		case c.slots <- struct{}{}: // a client with too many open questions waits
		case <-ctx.Done():
			return
		}
		pending.Add(1)
		forwarding.ask(forward, w.onward, append([]byte(nil), packet...), client, overTCP, func(reply []byte) {
			go func() { // a client that does not read holds up nobody else
				defer pending.Done()
				if reply != nil {
					_ = c.write(reply)
				}
				<-c.slots
			}()
		})
	}
}

// stream is a TCP connection with messages on it, each behind its length
// (RFC 1035 §4.2.2).
type stream struct {
	conn   net.Conn
	reader *bufio.Reader
	packet []byte
	out    []byte
	slots  chan struct{}

	writing sync.Mutex
	frame   []byte
}

// read waits for a message; it is valid until the next call.
func (c *stream) read() ([]byte, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(idleTimeout))
	var size [2]byte
	if _, err := io.ReadFull(c.reader, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if cap(c.packet) < n {
		c.packet = make([]byte, n)
	}
	c.packet = c.packet[:n]
	_ = c.conn.SetReadDeadline(time.Now().Add(messageTimeout))
	_, err := io.ReadFull(c.reader, c.packet)
	return c.packet, err
}

// write sends a message in one piece (RFC 7766 §8). A client that does not
// read loses the connection.
func (c *stream) write(message []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.frame = append(binary.BigEndian.AppendUint16(c.frame[:0], uint16(len(message))), message...)
	_ = c.conn.SetWriteDeadline(time.Now().Add(messageTimeout))
	_, err := c.conn.Write(c.frame)
	if err != nil {
		_ = c.conn.Close()
	}
	return err
}

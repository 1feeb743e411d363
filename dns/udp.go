package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"holdfast/internal/kernel/sockopt"
)

// maxPacket is the largest query read, in bytes; what is longer is cut, and
// malformed by it.
const maxPacket = 4096

// batchSize is how many queries are read, and answered, with one system call
// each. More than are waiting don't come, so that it costs a query no time.
const batchSize = 32

// serveUDP answers what arrives at one socket until ctx ends and the socket is
// closed. What needs forwarders goes on without it.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn, forwarding *flights) error {
	w := s.newWorker(overUDP)
	batch, err := sockopt.NewBatch(conn, batchSize, maxPacket, maxUDP)
	if err != nil {
		return fmt.Errorf("dns: %v: %w", conn.LocalAddr(), err)
	}
	for {
		n, err := batch.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if transient(err) {
				continue
			}
			return fmt.Errorf("dns: read from %v: %w", conn.LocalAddr(), err)
		}
		started := time.Now()
		for i := range n {
			s.answerUDP(forwarding, w, conn, batch, i)
		}
		if failed := batch.Flush(); failed > 0 {
			s.metrics.dropped.WithLabelValues("send").Add(float64(failed))
		}
		w.flush(time.Since(started))
	}
}

// answerUDP queues the answer to one datagram of a batch, or sends its
// question on.
func (s *Server) answerUDP(forwarding *flights, w *worker, conn *net.UDPConn, batch *sockopt.Batch, i int) {
	packet, client := batch.Packet(i), batch.Client(i)
	if client.Port() == 0 {
		s.metrics.malformed.WithLabelValues("port").Inc()
		return
	}
	reply, forward := w.handle(batch.Room(), packet, client.Addr())
	if len(reply) > 0 {
		batch.Reply(i, reply, replySource(batch.SourceRoom(), batch.Control(i)))
	}
	if forward != nil {
		to, source := zoned(client, batch.Zone(i)), replySource(nil, batch.Control(i))
		forwarding.ask(forward, w.onward, append([]byte(nil), packet...), client.Addr(), overUDP, func(reply []byte) {
			if reply != nil {
				s.countSend(sendFrom(conn, reply, source, to))
			}
		})
	}
}

// sendFrom sends one datagram; the worker's batch is the worker's.
func sendFrom(conn *net.UDPConn, reply, source []byte, to netip.AddrPort) error {
	sender, err := sockopt.NewSender(conn)
	if err != nil {
		return err
	}
	return sender.Send(reply, source, to)
}

// zoned gives a link-local address the interface it belongs to.
func zoned(client netip.AddrPort, index uint32) netip.AddrPort {
	if index == 0 || !client.Addr().IsLinkLocalUnicast() {
		return client
	}
	link, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return client // it is gone: so is the client
	}
	return netip.AddrPortFrom(client.Addr().WithZone(link.Name), client.Port())
}

// transient tells whether an error of a read concerns one datagram and not the
// socket: ICMP errors, and want of memory.
func transient(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// replySource makes a reply leave from the address that was asked: on a socket
// of all addresses the kernel would choose another, which the client does not
// know. Only a link-local address needs its interface too.
func replySource(b, oob []byte) []byte {
	dst, ifindex, ok := sockopt.Destination(oob)
	if !ok || dst.IsMulticast() {
		return b
	}
	if !dst.IsLinkLocalUnicast() {
		ifindex = 0
	}
	return sockopt.AppendSource(b, dst, ifindex)
}

// countSend counts a reply that could not be sent.
func (s *Server) countSend(err error) {
	if err != nil {
		s.metrics.dropped.WithLabelValues("send").Inc()
	}
}

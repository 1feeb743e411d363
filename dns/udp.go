package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
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
// closed. Questions for forwarders go on in goroutines of group.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn, group *sync.WaitGroup) error {
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
			s.answerUDP(ctx, group, w, conn, batch, i)
		}
		if failed := batch.Flush(); failed > 0 {
			s.metrics.dropped.WithLabelValues("send").Add(float64(failed))
		}
		w.flush(time.Since(started))
	}
}

// answerUDP queues the answer to one datagram of a batch, or sends its
// question on.
func (s *Server) answerUDP(ctx context.Context, group *sync.WaitGroup, w *worker, conn *net.UDPConn, batch *sockopt.Batch, i int) {
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
		s.forwardUDP(ctx, group, udpQuestion{
			conn: conn, client: zoned(client, batch.Zone(i)), route: forward,
			packet: append([]byte(nil), packet...), source: replySource(nil, batch.Control(i)),
		})
	}
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

// udpQuestion is a question on its way to a forwarder.
type udpQuestion struct {
	conn   *net.UDPConn
	client netip.AddrPort
	route  *route
	packet []byte
	source []byte
}

func (s *Server) forwardUDP(ctx context.Context, group *sync.WaitGroup, u udpQuestion) {
	s.forwardAsync(ctx, group, u.route, u.packet, overUDP, func(reply []byte) {
		sender, err := sockopt.NewSender(u.conn) // the worker's is the worker's
		if err == nil {
			err = sender.Send(reply, u.source, u.client)
		}
		s.countSend(err)
	})
}

package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"holdfast/internal/kernel/sockopt"
)

// maxPacket is the largest query read, in bytes; what is longer is cut, and
// malformed by it.
const maxPacket = 4096

// serveUDP answers what arrives at one socket until ctx ends and the socket is
// closed. Questions for forwarders go on in goroutines of group.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn, group *sync.WaitGroup) error {
	w := s.newWorker(overUDP)
	sender, err := sockopt.NewSender(conn)
	if err != nil {
		return fmt.Errorf("dns: %v: %w", conn.LocalAddr(), err)
	}
	packet := make([]byte, maxPacket)
	oob := make([]byte, sockopt.PacketInfoSize)
	out := make([]byte, 0, maxPacket)
	source := make([]byte, 0, sockopt.PacketInfoSize)
	for {
		n, oobn, _, client, err := conn.ReadMsgUDPAddrPort(packet, oob)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if transient(err) {
				continue
			}
			return fmt.Errorf("dns: read from %v: %w", conn.LocalAddr(), err)
		}
		if client.Port() == 0 {
			s.metrics.malformed.WithLabelValues("port").Inc()
			continue
		}
		source = replySource(source[:0], oob[:oobn])
		reply, forward := w.handle(out, packet[:n], client.Addr())
		if len(reply) > 0 {
			s.countSend(sender.Send(reply, source, client))
		}
		if forward != nil {
			s.forwardUDP(ctx, group, udpQuestion{
				conn: conn, client: client, route: forward,
				packet: append([]byte(nil), packet[:n]...), source: append([]byte(nil), source...),
			})
		}
	}
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

package logrelay

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"time"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

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

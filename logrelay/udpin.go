package logrelay

import (
	"context"
	"errors"
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
	datagrams     = 64        // a system call
	datagramBytes = 64 << 10  // the greatest that there is
	datagramsMost = 512 << 10 // bytes of lines after which they go to the journal, though more have come
	receiveBuffer = 16 << 20
	debugSeverity = 7
	// gatherFor is for how long lines that come thick gather in the socket. Each
	// look at it costs a write of the journal with its fdatasync and a look of
	// each output at that, besides the waking: as much as some fifty lines do. At
	// 250,000 lines a second, 3 MiB of the receive buffer fill meanwhile.
	gatherFor = 10 * time.Millisecond
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

// serveUDP takes datagrams until ctx ends, and then what has come by then. It
// closes conn.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) error {
	packets, err := sockopt.NewModerated(conn, datagrams, datagramBytes, gatherFor)
	if err != nil {
		return fmt.Errorf("logrelay: udp %v: %w", conn.LocalAddr(), err)
	}
	defer packets.Close()
	stop := context.AfterFunc(ctx, packets.Stop)
	defer stop()
	var batch journal.Batch
	promised := s.newPromises(viaUDP, 0)
	defer promised.end()
	for {
		n, err := packets.Receive()
		s.takeDatagrams(&batch, packets, n)
		if err == nil && packets.More() && batch.Size() < datagramsMost {
			continue
		}
		promised.put(&batch)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("logrelay: udp %v: %w", conn.LocalAddr(), err)
		}
	}
}

// takeDatagrams adds what was received to a batch. One that something panics over
// is lost, and counted.
func (s *Server) takeDatagrams(batch *journal.Batch, packets *sockopt.Moderated, n int) {
	for i := 0; i < n; {
		i = s.takeSome(batch, packets, i, n)
	}
}

// takeSome takes datagrams from one on, and returns behind which it came: all n of
// them, or one that something panicked over.
func (s *Server) takeSome(batch *journal.Batch, packets *sockopt.Moderated, from, n int) (i int) {
	i = from
	cut := 0
	defer func() {
		s.metrics.cutLines(viaUDP, &cut)
		if p := recover(); p != nil {
			_ = s.bugs.input(viaUDP, p) // there is no connection to end
			s.metrics.lost[viaUDP].Inc()
			i++
		}
	}()
	now, shed := time.Now().UnixNano(), s.gate.shed()
	for ; i < n; i++ {
		data := packets.Packet(i)
		if packets.Cut(i) {
			cut++
		}
		if shed && syslog.Severity(data) >= debugSeverity {
			s.metrics.shed.Inc()
			continue
		}
		batch.Add(journal.Record{Time: now, Source: packets.Client(i).Addr().Unmap(), Input: viaUDP, Data: data})
	}
	return i
}

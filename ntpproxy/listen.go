package ntpproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"

	"holdfast/internal/kernel/sockopt"
	"holdfast/internal/ntp"
)

// Room for datagrams.
const (
	batchSize = 16
	// maxDatagram is the largest request read whole, in bytes; what is longer
	// is cut, and most probably malformed by it.
	maxDatagram = 512
	// receiveBuffer holds what arrives while a worker is busy, in bytes.
	receiveBuffer = 1 << 20
)

// socket is one of those that share an address.
type socket struct {
	addr netip.AddrPort
	conn *net.UDPConn
}

// socketsFor is how many sockets share an address. Half of the work on a
// datagram is the kernel's, on the processor that received it: a socket for
// each two processors answers as many requests as one for each, in larger
// batches, and takes a quarter less of the processors for it.
func socketsFor(processors int) int { return (processors + 1) / 2 }

// fewestProcessors is how many Go's scheduler is told to have, at least. With one,
// which is then in a system call whenever a worker waits, the runtime's monitor
// takes it away from each that waits for longer than 20 µs, and starts a thread
// that looks for work: three switches of threads in place of one for each
// datagram that did not come at once. With a second one idle it waits for 10 ms.
const fewestProcessors = 2

// spare makes sure that there is a processor to spare, by Go's count, until
// restore.
func spare() (restore func()) {
	had := runtime.GOMAXPROCS(0)
	if had >= fewestProcessors {
		return func() {}
	}
	runtime.GOMAXPROCS(fewestProcessors)
	return func() { runtime.GOMAXPROCS(had) }
}

// listen opens, for each address, several sockets, over which the kernel
// spreads the requests. On an error nothing stays open.
func (s *Server) listen(ctx context.Context) (sockets []socket, err error) {
	addrs, explicit := s.listenAddrs()
	defer func() {
		if err != nil {
			for _, one := range sockets {
				_ = one.conn.Close()
			}
			sockets = nil
		}
	}()
	for _, addr := range addrs {
		count := socketsFor(runtime.GOMAXPROCS(0))
		for range count {
			conn, err := listenUDP(ctx, addr, count > 1)
			if !explicit && addr.Addr().Is6() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
				s.log.Info("this machine has no IPv6: serving IPv4 only")
				break
			}
			if err != nil {
				return sockets, fmt.Errorf("ntpproxy: listen on %v: %w%s", addr, err, advice(err))
			}
			// Port 0 takes a free one, for all sockets of the address.
			addr = netip.AddrPortFrom(addr.Addr(), conn.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			sockets = append(sockets, socket{addr, conn})
		}
	}
	return sockets, nil
}

// advice is what to do about an error of a socket.
func advice(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "; another NTP server holds it: give it `port 0` if it is the chronyd that keeps this clock, or list the addresses to serve in ntp.listen of the cluster file"
	case errors.Is(err, syscall.EACCES):
		return "; ports below 1024 need CAP_NET_BIND_SERVICE"
	}
	return ""
}

func (s *Server) listenAddrs() (addrs []netip.AddrPort, explicit bool) {
	if len(s.config.Listen) > 0 {
		return s.config.Listen, true
	}
	if set := s.settings.Load(); len(set.listen) > 0 {
		return set.listen, true
	}
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.IPv4Unspecified(), ntp.Port),
		netip.AddrPortFrom(netip.IPv6Unspecified(), ntp.Port),
	}, false
}

// listenUDP opens a socket. Others of the same address may follow it if it is
// shared. Port 0 takes one that nobody has: the kernel would else give a port now
// and then that another of this user's servers shares among its own sockets, and
// spread both servers' requests over both.
func listenUDP(ctx context.Context, addr netip.AddrPort, shared bool) (*net.UDPConn, error) {
	// PacketInfo on single addresses too: a virtual one is answered from, and
	// a link-local one needs its interface.
	controls := []sockopt.Control{sockopt.PacketInfo, sockopt.Timestamps}
	if addr.Port() != 0 {
		controls = append(controls, sockopt.ReusePort)
	}
	if !addr.Addr().IsUnspecified() {
		controls = append(controls, sockopt.FreeBind)
	}
	network := "udp6"
	if addr.Addr().Is4() {
		network = "udp4"
	}
	config := net.ListenConfig{Control: sockopt.Chain(controls...)}
	conn, err := config.ListenPacket(ctx, network, addr.String())
	if err != nil {
		return nil, err
	}
	udp := conn.(*net.UDPConn)
	if addr.Port() == 0 && shared {
		raw, err := udp.SyscallConn()
		if err == nil {
			err = sockopt.ReusePort(network, addr.String(), raw)
		}
		if err != nil {
			return nil, errors.Join(err, udp.Close())
		}
	}
	_ = udp.SetReadBuffer(receiveBuffer) // as much as the kernel allows
	return udp, nil
}

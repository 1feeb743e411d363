package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"

	"holdfast/internal/kernel/sockopt"
)

// sockets is what a server listens on.
type sockets struct {
	udp   []*net.UDPConn
	tcp   []net.Listener
	addrs []netip.AddrPort
}

func (s *sockets) close() {
	for _, c := range s.udp {
		_ = c.Close()
	}
	for _, l := range s.tcp {
		_ = l.Close()
	}
}

// listen opens the sockets of all addresses: one TCP listener each, and as
// many UDP sockets as there are processors, over which the kernel spreads the
// queries. On an error nothing stays open.
func (s *Server) listen(ctx context.Context) (*sockets, error) {
	addrs, explicit := s.listenAddrs()
	all := &sockets{}
	for _, addr := range addrs {
		err := all.open(ctx, addr)
		if !explicit && addr.Addr().Is6() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
			s.log.Info("this machine has no IPv6: serving IPv4 only")
			continue
		}
		if err != nil {
			all.close()
			return nil, fmt.Errorf("dns: listen on %v: %w%s", addr, err, advice(err))
		}
	}
	return all, nil
}

// advice is what to do about an error of a socket.
func advice(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "; another DNS server (systemd-resolved, BIND ...) holds it: stop that, or list the addresses to serve in dns.listen of the cluster file"
	case errors.Is(err, syscall.EACCES):
		return "; ports below 1024 need CAP_NET_BIND_SERVICE"
	}
	return ""
}

func (s *Server) listenAddrs() (addrs []netip.AddrPort, explicit bool) {
	if len(s.config.Listen) > 0 {
		return s.config.Listen, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.compiler.listen) > 0 {
		return s.compiler.listen, true
	}
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.IPv4Unspecified(), Port),
		netip.AddrPortFrom(netip.IPv6Unspecified(), Port),
	}, false
}

// freePortTries bounds the search for a port that is free for both transports.
const freePortTries = 16

func (s *sockets) open(ctx context.Context, addr netip.AddrPort) error {
	for try := 1; ; try++ {
		listener, err := listenTCP(ctx, addr)
		if err != nil {
			return err
		}
		bound := netip.AddrPortFrom(addr.Addr(), listener.Addr().(*net.TCPAddr).AddrPort().Port())
		conns, err := listenUDP(ctx, bound)
		if err == nil {
			s.tcp = append(s.tcp, listener)
			s.udp = append(s.udp, conns...)
			s.addrs = append(s.addrs, bound)
			return nil
		}
		_ = listener.Close()
		if addr.Port() != 0 || try == freePortTries || !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
	}
}

func family(addr netip.Addr) string {
	if addr.Is4() {
		return "4"
	}
	return "6"
}

// listenTCP does not share its port: it is what keeps a second server from
// taking half of the queries unnoticed.
func listenTCP(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	config := net.ListenConfig{Control: control(addr.Addr()), KeepAlive: -1}
	return config.Listen(ctx, "tcp"+family(addr.Addr()), addr.String())
}

func listenUDP(ctx context.Context, addr netip.AddrPort) ([]*net.UDPConn, error) {
	config := net.ListenConfig{Control: control(addr.Addr(), sockopt.ReusePort)}
	var conns []*net.UDPConn
	for range runtime.GOMAXPROCS(0) {
		conn, err := config.ListenPacket(ctx, "udp"+family(addr.Addr()), addr.String())
		if err != nil {
			for _, c := range conns {
				_ = c.Close()
			}
			return nil, err
		}
		_ = conn.(*net.UDPConn).SetReadBuffer(receiveBuffer) // as much as the kernel allows
		conns = append(conns, conn.(*net.UDPConn))
	}
	return conns, nil
}

// receiveBuffer holds what arrives while a worker is busy, in bytes.
const receiveBuffer = 1 << 20

// control prepares a socket: a single address may come later than the server,
// as virtual ones do; of all addresses the one that was asked must be known.
func control(addr netip.Addr, more ...sockopt.Control) sockopt.Control {
	if !addr.IsUnspecified() {
		return sockopt.Chain(append(more, sockopt.FreeBind)...)
	}
	return sockopt.Chain(append(more, func(network, address string, conn syscall.RawConn) error {
		if network[:3] != overUDP {
			return nil
		}
		return sockopt.PacketInfo(network, address, conn)
	})...)
}

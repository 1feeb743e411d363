package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"holdfast/internal/kernel/sockopt"
)

// Limits of the inputs' connections.
const (
	maxConnections   = 20_000
	maxReplicas      = 256              // connections of other nodes, which no number of senders keeps out
	openWithin       = 30 * time.Second // a RELP client says open at once
	handshakeWithin  = 10 * time.Second
	acceptRetryAfter = 50 * time.Millisecond // out of files, mostly
)

// listen opens the sockets of all inputs.
func (s *Server) listen(ctx context.Context) (list []listener, err error) {
	addrs := map[string][]netip.AddrPort{}
	for via := viaRELP; via <= viaReplica; via++ {
		for _, addr := range s.settings.listen[via] {
			opened, at, failed := s.open(ctx, via, addr)
			if err = errors.Join(err, failed); failed == nil {
				list = append(list, opened...)
				addrs[inputName(via)] = append(addrs[inputName(via)], at)
			}
		}
	}
	for _, path := range s.settings.unix {
		conn, failed := listenUnix(ctx, path)
		if err = errors.Join(err, failed); failed == nil {
			list = append(list, listener{via: viaUnix, unix: conn})
		}
	}
	if err != nil {
		for _, l := range list {
			l.close()
		}
		return nil, err
	}
	s.setAddrs(addrs)
	return list, nil
}

func (s *Server) open(ctx context.Context, via uint8, addr netip.AddrPort) (list []listener, at netip.AddrPort, err error) {
	if via == viaUDP {
		conns, err := s.listenUDP(ctx, addr.String())
		if err != nil {
			return nil, at, err
		}
		for _, conn := range conns {
			list = append(list, listener{via: via, udp: conn})
			at = conn.LocalAddr().(*net.UDPAddr).AddrPort()
		}
		return list, at, nil
	}
	config := net.ListenConfig{Control: sockopt.FreeBind}
	tcp, err := config.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, at, fmt.Errorf("logrelay: listen: %w", err)
	}
	return []listener{{via: via, tcp: tcp}}, tcp.Addr().(*net.TCPAddr).AddrPort(), nil
}

// accept serves until ctx ends and every connection is brought to its end, or
// a socket fails. It calls ready when all sockets are served.
func (s *Server) accept(ctx context.Context, listeners []listener, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ending, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	reading, endReading := context.WithCancel(ending)
	defer endReading()
	s.reading, s.ending = reading, ending
	var group, streams sync.WaitGroup
	failed := make(chan error, len(listeners))
	senders, nodes := make(chan struct{}, s.connections), make(chan struct{}, maxReplicas)
	for _, l := range listeners {
		with := &group
		if l.via == viaTCP || l.via == viaTLS {
			with = &streams
		}
		with.Go(func() {
			var err error
			switch {
			case l.udp != nil:
				err = s.serveUDP(ctx, l.udp)
			case l.unix != nil:
				err = s.serveUnix(ctx, l.unix)
			case l.via == viaReplica:
				err = s.acceptFrom(ctx, l, nodes)
			default:
				err = s.acceptFrom(ctx, l, senders)
			}
			if err != nil {
				failed <- err
				cancel()
			}
		})
	}
	ready()
	<-ctx.Done()
	defer time.AfterFunc(s.endWithin/2, endReading).Stop()
	defer time.AfterFunc(s.endWithin, end).Stop()
	for _, l := range listeners {
		if l.tcp != nil {
			l.close()
		}
	}
	streams.Wait()
	s.lastLosses.tell(s.log) // and not only when the last client by RELP has ended
	group.Wait()
	s.lastLosses.tell(s.log) // of UDP and sockets of this node
	for _, l := range listeners {
		if l.tcp == nil {
			l.close()
		}
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// acceptFrom serves a listener's connections.
func (s *Server) acceptFrom(ctx context.Context, l listener, slots chan struct{}) error {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := l.tcp.Accept()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			<-slots
			s.log.Error("a connection can't be accepted", "input", inputName(l.via), "error", err)
			select {
			case <-time.After(acceptRetryAfter):
			case <-ctx.Done():
				return nil
			}
			continue
		}
		group.Go(func() {
			defer func() { <-slots }()
			s.serveConn(ctx, conn, l.via)
		})
	}
}

func (s *Server) serveConn(ctx context.Context, conn net.Conn, via uint8) {
	defer conn.Close()
	s.metrics.input(via).connections.Inc()
	err := s.converse(ctx, conn, via)
	if err == nil {
		return
	}
	s.metrics.refused.WithLabelValues(inputName(via)).Inc()
	if s.refused(conn, err) {
		return
	}
	s.log.Info("a connection ended with an error; what was not acknowledged comes again",
		"input", inputName(via), "client", conn.RemoteAddr().String(), "error", err)
}

func (s *Server) converse(ctx context.Context, conn net.Conn, via uint8) error {
	raw := conn
	if via == viaTLS || via == viaRELPTLS || via == viaReplica {
		config := s.tls[0]
		if via == viaReplica {
			config = s.deps.ReplicaTLS
		}
		secure := tls.Server(conn, config)
		handshake, cancel := context.WithTimeout(ctx, handshakeWithin)
		err := s.guard(via, func() error { return secure.HandshakeContext(handshake) }, "client", conn.RemoteAddr().String())
		cancel()
		switch {
		case err != nil && via == viaReplica:
			return refusedHandshake(ctx, err)
		case err != nil:
			return err
		case via == viaReplica:
			return s.serveReplica(ctx, secure)
		}
		conn = secure
	}
	if s.tap != nil {
		conn = s.tap(conn)
	}
	if via == viaRELP || via == viaRELPTLS {
		c := s.newRELP(conn, via)
		ctx, left, ok, err := s.enter(ctx, c, addrOf(conn.LocalAddr()))
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil || !ok:
			return err
		}
		defer left()
		defer raw.Close() // who waits for the session's end takes its address away
		return c.serve(ctx)
	}
	return s.serveStream(ctx, conn, via)
}

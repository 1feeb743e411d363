package main

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"

	"holdfast/internal/kernel/sockopt"
)

// echo sends back what it gets, with the bit set that makes it a response: a
// server in Go that does nothing, with the sockets and batches of ours.
func echo() error {
	config := net.ListenConfig{Control: sockopt.Control(sockopt.ReusePort)}
	var group sync.WaitGroup
	errs := make(chan error, 1)
	for range runtime.GOMAXPROCS(0) {
		conn, err := config.ListenPacket(context.Background(), "udp4", os.Getenv("ECHO_LISTEN"))
		if err != nil {
			return err
		}
		group.Go(func() {
			select {
			case errs <- echoOn(conn.(*net.UDPConn)):
			default:
			}
		})
	}
	return <-errs
}

func echoOn(conn *net.UDPConn) error {
	const batchSize, packetSize = 32, 4096
	batch, err := sockopt.NewBatch(conn, batchSize, packetSize, packetSize)
	if err != nil {
		return err
	}
	for {
		n, err := batch.Receive()
		if err != nil {
			return err
		}
		for i := range n {
			reply := append(batch.Room(), batch.Packet(i)...)
			if len(reply) > 2 {
				reply[2] |= 0x80
			}
			batch.Reply(i, reply, nil)
		}
		batch.Flush()
	}
}

// upstreamAddr is where forwarders ask.
var upstreamAddr = netip.MustParseAddrPort("127.0.0.1:5390")

// serveUpstream answers whatever is asked with one address, for an hour.
func serveUpstream() (stop func(), err error) {
	conn, err := net.ListenPacket("udp4", upstreamAddr.String())
	if err != nil {
		return nil, err
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 3600}, A: net.IPv4(192, 0, 2, 80)}}
		}
		_ = w.WriteMsg(m)
	})
	server := &dns.Server{PacketConn: conn, Handler: handler}
	go func() { _ = server.ActivateAndServe() }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.ShutdownContext(ctx)
	}, nil
}

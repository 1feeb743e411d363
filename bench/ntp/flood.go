package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"holdfast/internal/ntp"
)

// A flood is floodSockets sockets with at most floodWindow requests under way
// on each: as fast as the server answers, and no faster.
const (
	floodSockets = 4
	floodWindow  = 16
)

// drownMain floods a server, and prints how many requests were sent and how
// many answered.
func drownMain(server string, d time.Duration) error {
	at, err := netip.ParseAddrPort(server)
	if err != nil {
		return err
	}
	sent, answered, err := floodFor(at, d)
	fmt.Println(sent, answered)
	return err
}

// floodFor floods for a time, and tells how many requests were sent and how
// many answered.
func floodFor(at netip.AddrPort, d time.Duration) (sent, answered int64, err error) {
	var group sync.WaitGroup
	var allSent, allAnswered atomic.Int64
	failed := make(chan error, floodSockets)
	until := time.Now().Add(d)
	for range floodSockets {
		group.Go(func() {
			s, a, err := floodOne(at, until)
			allSent.Add(s)
			allAnswered.Add(a)
			if err != nil {
				failed <- err
			}
		})
	}
	group.Wait()
	close(failed)
	return allSent.Load(), allAnswered.Load(), <-failed
}

func floodOne(at netip.AddrPort, until time.Time) (sent, answered int64, err error) {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	batch := ipv4.NewPacketConn(conn)
	out, in := messages(floodWindow), messages(floodWindow)
	for time.Now().Before(until) {
		n, err := batch.WriteBatch(out, 0)
		if err != nil {
			return sent, answered, err
		}
		sent += int64(n)
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		for got := 0; got < n; {
			m, err := batch.ReadBatch(in, 0)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break // the rest is lost
			}
			if err != nil {
				return sent, answered, err
			}
			got += m
			answered += int64(m)
		}
	}
	return sent, answered, nil
}

func messages(n int) []ipv4.Message {
	list := make([]ipv4.Message, n)
	for i := range list {
		packet := request()
		list[i].Buffers = [][]byte{append(make([]byte, 0, ntp.Size), packet[:]...)}
	}
	return list
}

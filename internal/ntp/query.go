package ntp

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// Query asks a server, host:port, once (RFC 5905 §8), and waits for its reply
// until ctx ends. The times are this process's own, taken around the system
// calls: good to some tens of microseconds. What is no reply to the request is
// passed over. The error is a *KissError when the server refused to serve.
func Query(ctx context.Context, server string) (Answer, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", server)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	// A random number instead of the time: only who sees the request can
	// forge a reply, and the server learns nothing of our clock.
	var nonce [8]byte
	_, _ = cryptorand.Read(nonce[:]) // never fails (crypto/rand)
	sent := Timestamp(binary.BigEndian.Uint64(nonce[:]) | 1)
	request := Packet{Version: Version, Mode: ModeClient, Transmit: sent}
	var out [Size]byte
	request.Put(&out)
	left := time.Now()
	if _, err := conn.Write(out[:]); err != nil {
		return Answer{}, ended(ctx, err)
	}
	reply := make([]byte, 512)
	for {
		n, err := conn.Read(reply)
		arrived := time.Now()
		if err != nil {
			return Answer{}, ended(ctx, err)
		}
		a, err := Match(reply[:n], sent, left, arrived)
		if err == nil || errors.As(err, new(*KissError)) {
			return a, err
		}
	}
}

// ended says that ctx ended rather than what this did to the socket.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no reply: %w", ctx.Err())
	}
	return err
}

package ntpproxy

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/internal/kernel/sockopt"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// exchangeTimeout is how long a source has to answer.
const exchangeTimeout = 3 * time.Second

// exchange asks a source once, host:port. What is learned is said over the
// bare oscillator, so that nothing that happens to the clock meanwhile spoils
// it. The error is a *ntp.KissError when the source refused.
func exchange(ctx context.Context, server string) (discipline.Sample, ntp.Packet, netip.Addr, error) {
	return exchangeBy(ctx, server, clock.Now)
}

// exchangeBy is exchange by the clock that look reads: before the request is
// sent, and after each datagram that came.
func exchangeBy(ctx context.Context, server string, look func() (clock.Reading, error)) (discipline.Sample, ntp.Packet, netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	dialer := net.Dialer{Control: sockopt.Departures}
	c, err := dialer.DialContext(ctx, "udp", server)
	if err != nil {
		return discipline.Sample{}, ntp.Packet{}, netip.Addr{}, err
	}
	conn := c.(*net.UDPConn)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	from := conn.RemoteAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	raw, err := conn.SyscallConn()
	if err != nil {
		return discipline.Sample{}, ntp.Packet{}, from, err
	}
	// Random, as in ntp.Query: only who sees the request can forge a reply.
	var nonce [8]byte
	_, _ = cryptorand.Read(nonce[:]) // never fails
	sent := ntp.Timestamp(binary.BigEndian.Uint64(nonce[:]) | 1)
	request := ntp.Packet{Version: ntp.Version, Mode: ntp.ModeClient, Transmit: sent}
	var out [ntp.Size]byte
	request.Put(&out)
	ready, err := look()
	if err != nil {
		return discipline.Sample{}, ntp.Packet{}, from, err
	}
	if _, err := conn.Write(out[:]); err != nil {
		return discipline.Sample{}, ntp.Packet{}, from, ending(ctx, err)
	}
	buf, oob := make([]byte, maxDatagram), make([]byte, 128)
	for {
		n, m, _, _, err := conn.ReadMsgUDP(buf, oob)
		if err != nil {
			return discipline.Sample{}, ntp.Packet{}, from, ending(ctx, err)
		}
		now, err := look()
		if err != nil {
			return discipline.Sample{}, ntp.Packet{}, from, err
		}
		a, err := ntp.Match(buf[:n], sent, ready.Clock, now.Clock)
		if err != nil && !errors.As(err, new(*ntp.KissError)) {
			continue // not a reply to this request
		}
		if err == nil {
			var sample discipline.Sample
			sample, err = measure(a.Packet, ready, now, sockopt.Departed(raw), sockopt.Arrived(oob[:m]))
			return sample, a.Packet, from, err
		}
		return discipline.Sample{}, a.Packet, from, err
	}
}

// ending is the error of a socket whose deadline came with ctx's end, wherever it
// was met.
func ending(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no reply: %w", ctx.Err())
	}
	return err
}

// notBefore is when this program was written, roughly: no time before it is
// true.
var notBefore = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// eraChange is when era 1 begins. A packet's time is the one nearest to it, in
// 1968 to 2104 (RFC 4330 §3), whatever our own clock shows: it may have woken
// up in 1970, or in 2162.
var eraChange = time.Date(2036, 2, 7, 6, 28, 16, 0, time.UTC)

// errImpossible: what a source says can't be.
var errImpossible = errors.New("ntpproxy: the source's times contradict each other")

// measure turns a reply into a sample. ready and now were read before the
// request and after the reply; left and arrived are the kernel's times of when
// the one left and the other arrived, by the machine's clock, 0 unknown. It is
// pure.
func measure(p ntp.Packet, ready, now clock.Reading, left, arrived int64) (discipline.Sample, error) {
	there, back := ready.Raw, now.Raw
	if waited := time.Duration(now.Clock.UnixNano() - arrived); arrived != 0 && waited >= 0 && waited <= back-there {
		back -= waited
	}
	if held := time.Duration(left - ready.Clock.UnixNano()); left != 0 && held >= 0 && held <= back-there {
		there += held
	}
	inside := p.Transmit.Sub(p.Receive)
	received := p.Receive.Time(eraChange)
	way := back - there
	switch {
	case p.Transmit == 0 || p.Receive == 0 || inside < 0 || inside > way+time.Millisecond:
		return discipline.Sample{}, fmt.Errorf("%w: a reply after %v that it had for %v", errImpossible, way, inside)
	case received.Before(notBefore):
		return discipline.Sample{}, fmt.Errorf("%w: it is %v there", errImpossible, received.UTC().Format(time.RFC3339))
	}
	s := discipline.Sample{
		Raw: there + way/2, Server: received.Add(inside / 2), Delay: max(0, way-inside),
		Precision: max(time.Duration(1), precisionOf(p.Precision)),
		Stratum:   p.Stratum, RootDelay: p.RootDelay.Duration(), Dispersion: p.RootDispersion.Duration(),
	}
	_, s.Smeared = p.ReferenceID.Smear()
	switch p.Leap {
	case ntp.LeapUnknown:
		s.Stratum = 0
	case ntp.LeapInsert:
		s.Leap = discipline.LeapInsert
	case ntp.LeapDelete:
		s.Leap = discipline.LeapDelete
	}
	return s, nil
}

// precisionOf is 2^p seconds; a clock that is said to be read worse than to
// the second is taken for one of a second.
func precisionOf(p int8) time.Duration {
	if p >= 0 {
		return time.Second
	}
	return time.Second >> min(-int(p), 40) // int: there is no +128 in an int8
}

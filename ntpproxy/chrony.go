package ntpproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"holdfast/internal/ntp"
)

// chronyd answers what it knows of the clock to anyone on the machine, as
// `chronyc tracking` shows it: what the kernel doesn't know (candm.h of
// chrony, protocol version 6; all fields big-endian).
const (
	chronyVersion   = 6
	chronyRequest   = 1
	chronyReply     = 2
	chronyTracking  = 33 // command
	chronyTracked   = 5  // kind of reply
	chronyReplySize = 104
	// A request is as long as its reply, so that it is no amplifier.
	chronyRequestSize = chronyReplySize
)

// chronyAddr is where chronyd listens for commands unless told otherwise.
var chronyAddr = netip.MustParseAddrPort("127.0.0.1:323")

// chronyTimeout is for an answer from the same machine.
const chronyTimeout = 200 * time.Millisecond

// tracking is what chronyd says of the clock.
type tracking struct {
	Leap           ntp.Leap
	Stratum        uint8
	Reference      ntp.Reference
	Set            time.Time
	RootDelay      time.Duration
	RootDispersion time.Duration
}

// askChrony asks a chronyd. That there is none is an error like any other.
func askChrony(addr netip.AddrPort, sequence uint32) (tracking, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return tracking{}, fmt.Errorf("ask chronyd: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(chronyTimeout)); err != nil {
		return tracking{}, fmt.Errorf("ask chronyd: %w", err)
	}
	request := make([]byte, chronyRequestSize)
	request[0], request[1] = chronyVersion, chronyRequest
	binary.BigEndian.PutUint16(request[4:], chronyTracking)
	binary.BigEndian.PutUint32(request[8:], sequence)
	if _, err := conn.Write(request); err != nil {
		return tracking{}, fmt.Errorf("ask chronyd: %w", err)
	}
	reply := make([]byte, 512)
	n, err := conn.Read(reply)
	if err != nil {
		return tracking{}, fmt.Errorf("ask chronyd: %w", err)
	}
	return parseTracking(reply[:n], sequence)
}

var errChrony = errors.New("not chronyd's answer to what was asked")

// parseTracking reads a reply.
func parseTracking(b []byte, sequence uint32) (tracking, error) {
	if len(b) < chronyReplySize || b[0] != chronyVersion || b[1] != chronyReply ||
		binary.BigEndian.Uint16(b[4:]) != chronyTracking || binary.BigEndian.Uint32(b[16:]) != sequence {
		return tracking{}, errChrony
	}
	if kind, status := binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(b[8:]); kind != chronyTracked || status != 0 {
		return tracking{}, fmt.Errorf("chronyd refused to tell: reply %d, status %d", kind, status)
	}
	data := b[28:]
	stratum, leap := binary.BigEndian.Uint16(data[24:]), binary.BigEndian.Uint16(data[26:])
	t := tracking{
		Leap: ntp.LeapUnknown, Reference: ntp.Reference(data[:4]),
		Set:       time.Unix(int64(binary.BigEndian.Uint64(data[28:])), int64(binary.BigEndian.Uint32(data[36:]))),
		RootDelay: chronySeconds(data[64:]), RootDispersion: chronySeconds(data[68:]),
	}
	if leap < uint16(ntp.LeapUnknown) && stratum >= 1 && stratum <= ntp.MaxStratum {
		t.Leap, t.Stratum = ntp.Leap(leap), uint8(stratum)
	}
	return t, nil
}

// chronySeconds reads chrony's floating point numbers: 7 bits of exponent and
// 25 of coefficient, both signed. What is negative or too long is the longest
// error there is.
func chronySeconds(b []byte) time.Duration {
	v := binary.BigEndian.Uint32(b)
	exponent := int(int32(v)>>25) - 25
	coefficient := int32(v<<7) >> 7
	seconds := math.Ldexp(float64(coefficient), exponent)
	if seconds < 0 || seconds > maxDispersion.Seconds() {
		return maxDispersion
	}
	return time.Duration(seconds * float64(time.Second))
}

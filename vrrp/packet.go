package vrrp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Checksum says how version 3 over IPv4 is summed. Both kinds are accepted.
type Checksum uint8

// The two readings of the standard that are on the wires. Version 2 never has
// a pseudo-header, IPv6 always has one.
const (
	PseudoHeader Checksum = iota // as keepalived sends, the default
	Plain                        // RFC 9568 §5.2.8 for IPv4; Cisco, Juniper
)

// Authentication types of version 2 (RFC 2338 §5.3.6; RFC 3768 kept the field).
const (
	AuthNone uint8 = 0
	AuthPass uint8 = 1
)

// What can be wrong with a packet. Parse returns them as they are.
var (
	ErrShort    = errors.New("shorter than its header and address count say")
	ErrVersion  = errors.New("neither version 2 over IPv4 nor version 3")
	ErrType     = errors.New("not an advertisement (type 1)")
	ErrVRID     = errors.New("virtual router ID 0")
	ErrInterval = errors.New("advertisement interval 0")
	ErrChecksum = errors.New("wrong checksum")
)

// Advert is an advertisement, in units of this program.
type Advert struct {
	Version   uint8         // 2 or 3
	VRID      uint8         // 1–255
	Priority  uint8         // 0: the sender gives up; 255: it owns the addresses
	Interval  time.Duration // version 2: whole seconds, 1–255 s; version 3: 10 ms – 40.95 s; 0 only with priority 0
	AuthType  uint8         // version 2
	Password  [8]byte       // version 2, type PASS; zero-padded
	Checksum  Checksum      // version 3 over IPv4: how what was parsed had been summed
	Addresses []netip.Addr
}

// The wire (RFC 9568 §5.1, RFC 3768 §5.1): a header, the addresses, and in
// version 2 authentication data that is there even when its type is none.
const (
	protocol      = 112
	typeAdvert    = 1
	headerLen     = 8
	checksumAt    = 6
	authLen       = 8
	centisecond   = 10 * time.Millisecond
	maxCentis     = 1<<12 - 1
	maxIntervalV3 = maxCentis * centisecond
)

// Parse reads the payload of an IP packet of protocol 112 into a, whose
// Addresses it reuses. The errors are those above: made once, so that garbage
// costs no memory. After an error a is of no use.
//
// RFC 9568 §7.1 asks for at least the length of the header and the addresses,
// so what follows them is ignored and not summed: padding of the link, or a
// trailer that a newer peer adds.
func (a *Advert) Parse(payload []byte, src, dst netip.Addr) error {
	if len(payload) < headerLen {
		return ErrShort
	}
	src, dst = src.Unmap(), dst.Unmap()
	version, size := payload[0]>>4, 4
	if src.Is6() {
		size = 16
	}
	length := headerLen + int(payload[3])*size
	switch {
	case version == 2 && src.Is4():
		length += authLen
	case version != 3:
		return ErrVersion
	}
	if payload[0]&0x0f != typeAdvert {
		return ErrType
	}
	if len(payload) < length {
		return ErrShort
	}
	payload = payload[:length]
	sum, ok := verify(payload, src, dst, version)
	if !ok {
		return ErrChecksum
	}
	*a = Advert{Version: version, VRID: payload[1], Priority: payload[2], Checksum: sum, Addresses: a.Addresses[:0]}
	if version == 2 {
		a.AuthType = payload[4]
		a.Interval = time.Duration(payload[5]) * time.Second
		copy(a.Password[:], payload[length-authLen:])
		payload = payload[:length-authLen]
	} else {
		a.Interval = time.Duration(binary.BigEndian.Uint16(payload[4:])&maxCentis) * centisecond
	}
	for b := payload[headerLen:]; len(b) > 0; b = b[size:] {
		addr, _ := netip.AddrFromSlice(b[:size])
		a.Addresses = append(a.Addresses, addr)
	}
	switch {
	case a.VRID == 0:
		return ErrVRID
	case a.Interval == 0 && a.Priority != 0:
		return ErrInterval
	}
	return nil
}

// Append appends the packet for a destination. An interval that the version
// cannot say becomes the nearest that it can. Addresses are of src's family.
func (a *Advert) Append(b []byte, src, dst netip.Addr, sum Checksum) []byte {
	start := len(b)
	b = append(b, a.Version<<4|typeAdvert, a.VRID, a.Priority, uint8(len(a.Addresses)))
	if a.Version == 2 {
		b = append(b, a.AuthType, uint8(units(a.Interval, time.Second, 255)), 0, 0)
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(units(a.Interval, centisecond, maxCentis)))
		b = append(b, 0, 0)
	}
	for _, addr := range a.Addresses {
		if addr = addr.Unmap(); addr.Is4() {
			v4 := addr.As4()
			b = append(b, v4[:]...)
		} else {
			v6 := addr.As16()
			b = append(b, v6[:]...)
		}
	}
	if a.Version == 2 {
		b = append(b, a.Password[:]...)
	}
	src, dst = src.Unmap(), dst.Unmap()
	packet := b[start:]
	total := add(0, packet)
	if a.Version == 3 && (src.Is6() || sum == PseudoHeader) {
		total = pseudo(total, src, dst, len(packet))
	}
	binary.BigEndian.PutUint16(packet[checksumAt:], ^fold(total))
	return b
}

// units is a duration in units of the wire, rounded, and at least one unless
// it is nothing.
func units(d, unit time.Duration, most int64) int64 {
	if d <= 0 {
		return 0
	}
	return min(max(int64((d+unit/2)/unit), 1), most)
}

// verify checks the sum of a packet of the right length, and tells which one
// it has.
func verify(packet []byte, src, dst netip.Addr, version uint8) (Checksum, bool) {
	const right = 0xffff
	plain := add(0, packet)
	if version == 3 && fold(pseudo(plain, src, dst, len(packet))) == right {
		return PseudoHeader, true
	}
	if src.Is6() {
		return PseudoHeader, false
	}
	if fold(plain) != right {
		return PseudoHeader, false
	}
	if version == 2 {
		return PseudoHeader, true
	}
	return Plain, true
}

// pseudo adds the pseudo-header (RFC 8200 §8.1; for IPv4 the like of RFC 9293
// §3.1): the addresses that the packet really has, protocol and length.
func pseudo(sum uint32, src, dst netip.Addr, length int) uint32 {
	for _, addr := range [...]netip.Addr{src, dst} {
		if addr.Is4() {
			v4 := addr.As4()
			sum = add(sum, v4[:])
		} else {
			v6 := addr.As16()
			sum = add(sum, v6[:])
		}
	}
	return sum + protocol + uint32(length)
}

// add sums 16-bit words (RFC 1071). The longest packet has 4 096 bytes: no
// overflow.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

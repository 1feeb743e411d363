package wire

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// MAC is a hardware address that can be compared.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Kind is what a frame is about.
type Kind uint8

// The kinds that a Watch records.
const (
	Advert   Kind = iota + 1 // VRRP
	Answer                   // From says to one asker that it has Addr: ARP reply, solicited NA
	Announce                 // From says to all that it has Addr: gratuitous ARP of either kind, unsolicited NA
)

func (k Kind) String() string {
	switch k {
	case Advert:
		return "advert"
	case Answer:
		return "answer"
	case Announce:
		return "announce"
	}
	return fmt.Sprintf("kind %d", k)
}

// Event is one frame, as it was on the wire.
type Event struct {
	At   time.Time // of the kernel, when the switch got it
	Kind Kind
	From MAC

	// Of an advert. Interval is what it announces.
	Src, Dst netip.Addr
	TTL      uint8
	Version  uint8
	VRID     uint8
	Priority uint8
	Interval time.Duration

	// Of an answer and an announcement.
	Addr netip.Addr
}

func (e Event) String() string {
	if e.Kind == Advert {
		return fmt.Sprintf("%s %s %s > %s: advert v%d vrid %d priority %d interval %s",
			e.At.Format("05.000000"), e.From, e.Src, e.Dst, e.Version, e.VRID, e.Priority, e.Interval)
	}
	return fmt.Sprintf("%s %s: %s %s", e.At.Format("05.000000"), e.From, e.Kind, e.Addr)
}

const (
	typeIPv4, typeARP, typeIPv6 = 0x0800, 0x0806, 0x86dd
	protocolICMP                = 1
	protocolICMPv6              = 58
	protocolVRRP                = 112
	etherLen                    = 14
)

// decode reads an Ethernet frame; ok is false for what a Watch does not record.
// It checks no checksum: that is for those who are tested.
func decode(frame []byte) (e Event, ok bool) {
	if len(frame) < etherLen {
		return e, false
	}
	e.From = MAC(frame[6:12])
	payload := frame[etherLen:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case typeARP:
		return decodeARP(e, payload)
	case typeIPv4:
		if len(payload) < 20 {
			return e, false
		}
		header := int(payload[0]&0x0f) * 4
		total := int(binary.BigEndian.Uint16(payload[2:]))
		if payload[9] != protocolVRRP || header < 20 || total < header || total > len(payload) {
			return e, false
		}
		e.TTL = payload[8]
		e.Src, e.Dst = netip.AddrFrom4([4]byte(payload[12:])), netip.AddrFrom4([4]byte(payload[16:]))
		return decodeAdvert(e, payload[header:total])
	case typeIPv6:
		return decodeIPv6(e, payload)
	}
	return e, false
}

// decodeARP reads RFC 826 over Ethernet. A request for one's own address is
// gratuitous; a reply to everybody is too (RFC 5227 §3).
func decodeARP(e Event, b []byte) (Event, bool) {
	if len(b) < 28 || b[4] != 6 || b[5] != 4 {
		return e, false
	}
	operation := binary.BigEndian.Uint16(b[6:])
	sender, target := netip.AddrFrom4([4]byte(b[14:])), netip.AddrFrom4([4]byte(b[24:]))
	e.Addr = sender
	// The claim is what the packet says, not who sent the frame.
	e.From = MAC(b[8:14])
	switch {
	case sender.IsUnspecified():
		return e, false
	case sender == target:
		e.Kind = Announce
	case operation == 2:
		e.Kind = Answer
	default:
		return e, false
	}
	return e, true
}

func decodeIPv6(e Event, b []byte) (Event, bool) {
	if len(b) < 40 {
		return e, false
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length > len(b)-40 {
		return e, false
	}
	e.TTL = b[7]
	e.Src, e.Dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	body := b[40 : 40+length]
	switch b[6] {
	case protocolVRRP:
		return decodeAdvert(e, body)
	case protocolICMPv6: // a neighbour advertisement (RFC 4861 §4.4)
		if len(body) < 24 || body[0] != 136 {
			return e, false
		}
		e.Kind, e.Addr = Answer, netip.AddrFrom16([16]byte(body[8:]))
		if body[4]&0x40 == 0 {
			e.Kind = Announce
		}
		return e, true
	}
	return e, false
}

// decodeAdvert reads the head of RFC 3768 §5.1 and RFC 9568 §5.1.
func decodeAdvert(e Event, b []byte) (Event, bool) {
	if len(b) < 8 || b[0]&0x0f != 1 {
		return e, false
	}
	e.Kind, e.Version, e.VRID, e.Priority = Advert, b[0]>>4, b[1], b[2]
	switch e.Version {
	case 2:
		e.Interval = time.Duration(b[5]) * time.Second
	case 3:
		e.Interval = time.Duration(binary.BigEndian.Uint16(b[4:])&0x0fff) * 10 * time.Millisecond
	default:
		return e, false
	}
	return e, true
}

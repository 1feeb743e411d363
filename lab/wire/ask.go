package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"holdfast/lab"
)

// transientErrors are what sending gives while nobody has the address.
func transientErrors() []error {
	return []error{unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ENETUNREACH, unix.ENOBUFS, unix.EAGAIN, unix.ENETDOWN}
}

// Sender sends Ethernet frames, well made or not, from a host's interface.
type Sender struct {
	file *os.File
	MAC  MAC
}

// OpenSender opens a sender on an interface of a host. Close it.
func OpenSender(h *lab.Host, device string) (*Sender, error) {
	s := new(Sender)
	err := h.Do(func() (err error) {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		if len(ifi.HardwareAddr) != len(s.MAC) {
			return fmt.Errorf("%s is no Ethernet interface", device)
		}
		s.MAC = MAC(ifi.HardwareAddr)
		s.file, err = openPacket(device, false, []bpf.Instruction{bpf.RetConstant{Val: 0}})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wire: send from %s: %w", h, err)
	}
	return s, nil
}

// Send sends a whole frame.
func (s *Sender) Send(frame []byte) error {
	_, err := s.file.Write(frame)
	return err
}

// Close closes it.
func (s *Sender) Close() error { return s.file.Close() }

// Ask asks every so often who has the addresses, until ctx ends, as src: ARP
// requests, or neighbour solicitations. The answers are for a Watch.
func (s *Sender) Ask(ctx context.Context, src netip.Addr, every time.Duration, addrs ...netip.Addr) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		for _, a := range addrs {
			frame := s.solicitation(src, a)
			if a.Is4() {
				frame = s.request(src, a)
			}
			if err := s.Send(frame); err != nil && !transient(err) {
				return fmt.Errorf("wire: ask who has %s: %w", a, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Frame is an Ethernet frame from this sender's interface.
func (s *Sender) Frame(dst MAC, etherType uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), s.MAC[:]...)
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

// request is an ARP request (RFC 826).
func (s *Sender) request(src, target netip.Addr) []byte {
	return s.Frame(broadcast(), typeARP, ARP(1, s.MAC, src, MAC{}, target))
}

func broadcast() MAC { return MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// ARP is an ARP packet for IPv4 over Ethernet; operation 1 asks, 2 answers.
func ARP(operation uint16, sender MAC, senderIP netip.Addr, target MAC, targetIP netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, sender[:]...), senderIP.AsSlice()...)
	return append(append(b, target[:]...), targetIP.AsSlice()...)
}

// solicitation is a neighbour solicitation to the target's solicited-node
// group (RFC 4861 §4.3).
func (s *Sender) solicitation(src, target netip.Addr) []byte {
	t := target.As16()
	group := [16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]}
	body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, t[:]...)
	body = append(append(body, 1, 1), s.MAC[:]...)
	dst := netip.AddrFrom16(group)
	binary.BigEndian.PutUint16(body[2:], Checksum(pseudoHeader(src, dst, protocolICMPv6, len(body)), body))
	return s.Frame(MAC{0x33, 0x33, 0xff, t[13], t[14], t[15]}, typeIPv6, IPv6(src, dst, protocolICMPv6, 255, body))
}

// IPv6 is a packet.
func IPv6(src, dst netip.Addr, next, hops uint8, body []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(body)))
	b = append(b, next, hops)
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), body...)
}

// IPv4 is a packet with a good header checksum.
func IPv4(src, dst netip.Addr, protocol, ttl uint8, body []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x45, 0xc0}, uint16(20+len(body)))
	b = append(b, 0, 0, 0, 0, ttl, protocol, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], Checksum(b))
	return append(b, body...)
}

func pseudoHeader(src, dst netip.Addr, protocol uint8, length int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	if src.Is4() {
		return binary.BigEndian.AppendUint16(append(b, 0, protocol), uint16(length))
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(length)), 0, 0, 0, protocol)
}

// Checksum is the Internet checksum (RFC 1071) over parts of even lengths, but
// the last.
func Checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// VRRP makes the payload of an advert by the standards' tables, apart from the
// code that is tested. Version 3 over IPv4 is summed as keepalived does, with
// a pseudo-header.
func VRRP(version, vrid, priority uint8, interval time.Duration, src, dst netip.Addr, password string, addrs ...netip.Addr) ([]byte, error) {
	b := []byte{version<<4 | 1, vrid, priority, uint8(len(addrs))}
	switch version {
	case 2: // RFC 3768 §5.3; the authentication data is always there
		kind := uint8(0)
		if password != "" {
			kind = 1
		}
		b = append(b, kind, uint8(interval/time.Second), 0, 0)
	case 3: // RFC 9568 §5.2
		b = append(binary.BigEndian.AppendUint16(b, uint16(interval/(10*time.Millisecond))), 0, 0)
	default:
		return nil, errors.New("wire: VRRP has versions 2 and 3")
	}
	for _, a := range addrs {
		b = append(b, a.AsSlice()...)
	}
	if version == 2 {
		var auth [8]byte
		copy(auth[:], password)
		b = append(b, auth[:]...)
		binary.BigEndian.PutUint16(b[6:], Checksum(b))
		return b, nil
	}
	binary.BigEndian.PutUint16(b[6:], Checksum(pseudoHeader(src, dst, protocolVRRP, len(b)), b))
	return b, nil
}

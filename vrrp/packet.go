package vrrp

import (
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

// Advert is an advertisement, in units of this program.
type Advert struct {
	Version   uint8         // 2 or 3
	VRID      uint8         // 1–255
	Priority  uint8         // 0: the sender gives up; 255: it owns the addresses
	Interval  time.Duration // version 2: whole seconds, 1–255 s; version 3: 10 ms – 40.95 s
	AuthType  uint8         // version 2
	Password  [8]byte       // version 2, type PASS; zero-padded
	Addresses []netip.Addr
}

// Parse reads the payload of an IP packet of protocol 112 into a, whose
// Addresses it reuses. The errors tell what is wrong; they are made once, so
// that garbage costs no memory.
func (a *Advert) Parse(payload []byte, src, dst netip.Addr) error { return errors.New("not written") }

// Append appends the packet for a destination.
func (a *Advert) Append(b []byte, src, dst netip.Addr, sum Checksum) []byte { panic("not written") }

package ntp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Port is where NTP is served (RFC 5905 §7.2).
const Port = 123

// Size is the length of a packet without extension fields and without a MAC,
// in bytes (RFC 5905 §7.3).
const Size = 48

// MaxStratum is the largest stratum of a server that is synchronised;
// 16 means unsynchronised, which packets write as 0 (RFC 5905 §7.3).
const MaxStratum = 15

// Version is the version of the protocol that this package speaks.
const Version = 4

// Leap warns of a leap second at the end of the current UTC month, or says
// that the clock is not synchronised.
type Leap uint8

// The leap indicators (RFC 5905 figure 9).
const (
	LeapNone    Leap = 0
	LeapInsert  Leap = 1 // the last minute has 61 seconds
	LeapDelete  Leap = 2 // the last minute has 59 seconds
	LeapUnknown Leap = 3 // not synchronised
)

// String is how the command line names it.
func (l Leap) String() string {
	switch l {
	case LeapNone:
		return "none"
	case LeapInsert:
		return "insert"
	case LeapDelete:
		return "delete"
	}
	return "unsynchronised"
}

// Mode is what a packet is for (RFC 5905 figure 10).
type Mode uint8

// The modes.
const (
	ModeReserved  Mode = 0
	ModeActive    Mode = 1 // symmetric active
	ModePassive   Mode = 2 // symmetric passive
	ModeClient    Mode = 3
	ModeServer    Mode = 4
	ModeBroadcast Mode = 5
	ModeControl   Mode = 6 // RFC 9327
	ModePrivate   Mode = 7
)

// Reference says what a server is synchronised to: four ASCII letters for
// stratum 0 (a kiss code) and 1, else a number that names the server above, so
// that a loop is seen.
type Reference [4]byte

// String is the letters, if they are some, else hexadecimal.
func (r Reference) String() string {
	text := r[:]
	for len(text) > 0 && text[len(text)-1] == 0 {
		text = text[:len(text)-1]
	}
	for _, c := range text {
		if c < 0x21 || c > 0x7e {
			return fmt.Sprintf("%08X", r[:])
		}
	}
	if len(text) == 0 {
		return fmt.Sprintf("%08X", r[:])
	}
	return string(text)
}

// The kiss codes that a server sends (RFC 5905 §7.4).
var (
	KissDeny     = Reference{'D', 'E', 'N', 'Y'} // stop, and don't come back
	KissRestrict = Reference{'R', 'S', 'T', 'R'} // likewise
	KissRate     = Reference{'R', 'A', 'T', 'E'} // come more rarely
	KissInit     = Reference{'I', 'N', 'I', 'T'} // not synchronised yet
)

// refuses tells whether a code is a refusal. All others, such as ntpd's STEP
// while it starts, have no meaning for the protocol (RFC 5905 §7.4): the server
// is not synchronised.
func (r Reference) refuses() bool { return r == KissDeny || r == KissRestrict || r == KissRate }

// Packet is an NTP packet, without what follows its 48 bytes.
type Packet struct {
	Leap           Leap
	Version        uint8 // 1 to 4; 0 and 5 to 7 are others' to read
	Mode           Mode
	Stratum        uint8 // 0 unspecified or a kiss of death
	Poll           int8  // log2 seconds
	Precision      int8  // log2 seconds
	RootDelay      Short
	RootDispersion Short
	ReferenceID    Reference
	Reference      Timestamp // when the clock was last set
	Origin         Timestamp // T1, as the client wrote it in Transmit
	Receive        Timestamp // T2
	Transmit       Timestamp // T3
}

// Errors of Parse.
var (
	ErrShort  = errors.New("ntp: shorter than 48 bytes")
	ErrLength = errors.New("ntp: what follows the 48 bytes is no multiple of 4 bytes")
)

// Parse reads a packet of mode 1 to 5. Extension fields and a MAC (RFC 7822)
// are left to the caller, as b[Size:]; they are not looked at but for their
// length. Every value of every field is accepted. It does not allocate.
func Parse(b []byte) (p Packet, err error) {
	switch {
	case len(b) < Size:
		return p, ErrShort
	case len(b)%4 != 0:
		return p, ErrLength
	}
	p.Leap, p.Version, p.Mode = Leap(b[0]>>6), b[0]>>3&7, Mode(b[0]&7)
	p.Stratum, p.Poll, p.Precision = b[1], int8(b[2]), int8(b[3])
	p.RootDelay = Short(binary.BigEndian.Uint32(b[4:]))
	p.RootDispersion = Short(binary.BigEndian.Uint32(b[8:]))
	p.ReferenceID = Reference(b[12:16])
	p.Reference = Timestamp(binary.BigEndian.Uint64(b[16:]))
	p.Origin = Timestamp(binary.BigEndian.Uint64(b[24:]))
	p.Receive = Timestamp(binary.BigEndian.Uint64(b[32:]))
	p.Transmit = Timestamp(binary.BigEndian.Uint64(b[40:]))
	return p, nil
}

// Put writes the packet. It does not allocate.
func (p *Packet) Put(b *[Size]byte) {
	b[0] = byte(p.Leap)<<6 | p.Version&7<<3 | byte(p.Mode)&7
	b[1], b[2], b[3] = p.Stratum, byte(p.Poll), byte(p.Precision)
	binary.BigEndian.PutUint32(b[4:], uint32(p.RootDelay))
	binary.BigEndian.PutUint32(b[8:], uint32(p.RootDispersion))
	copy(b[12:16], p.ReferenceID[:])
	binary.BigEndian.PutUint64(b[16:], uint64(p.Reference))
	binary.BigEndian.PutUint64(b[24:], uint64(p.Origin))
	binary.BigEndian.PutUint64(b[32:], uint64(p.Receive))
	PutTransmit(b, p.Transmit)
}

// PutTransmit writes T3 alone, which is known last.
func PutTransmit(b *[Size]byte, t Timestamp) {
	binary.BigEndian.PutUint64(b[40:], uint64(t))
}

// HasMAC tells whether what follows the 48 bytes of a packet, Size bytes taken
// off, ends in a MAC: a key identifier alone (a crypto-NAK) or with a digest
// of 16 or 20 bytes. An extension field that ends a packet without a MAC has
// at least 28 bytes (RFC 7822 §3).
func HasMAC(rest []byte) bool {
	switch len(rest) {
	case 4, 20, 24:
		return true
	}
	return false
}

// Answer is what a client learns from a server's reply.
type Answer struct {
	Packet
	Offset time.Duration // how far the server is ahead of the client's clock
	Delay  time.Duration // the way there and back; may be negative when clocks jumped
}

// Errors of Match. ErrOrigin is no reply to the request, from wherever it
// came: it is passed over in silence.
var (
	ErrOrigin = errors.New("ntp: the reply is to another request")
	ErrMode   = errors.New("ntp: not a server's reply")
)

// KissError is a server's refusal to serve us: a kiss of death.
type KissError struct{ Code Reference }

func (e *KissError) Error() string { return "ntp: refused by the server: kiss code " + e.Code.String() }

// Match reads a server's reply (RFC 5905 §8): sent is what the request had in
// Transmit, which need not be the time; left and arrived are when it left and
// when the reply came, by the client's clock.
func Match(reply []byte, sent Timestamp, left, arrived time.Time) (Answer, error) {
	p, err := Parse(reply)
	switch {
	case err != nil:
		return Answer{}, err
	case p.Origin != sent || sent == 0:
		return Answer{}, ErrOrigin
	case p.Mode != ModeServer || p.Version < 1 || p.Version > Version:
		return Answer{}, ErrMode
	case p.Stratum == 0 && p.Leap == LeapUnknown && p.ReferenceID.refuses():
		return Answer{}, &KissError{p.ReferenceID}
	}
	there := p.Receive.Sub(FromTime(left))
	back := p.Transmit.Sub(FromTime(arrived))
	return Answer{
		Packet: p,
		Offset: there/2 + back/2, // halves: their sum may not fit
		Delay:  arrived.Sub(left) - p.Transmit.Sub(p.Receive),
	}, nil
}

// Synchronised tells whether the server says that its clock is set.
func (a Answer) Synchronised() bool {
	return a.Leap != LeapUnknown && a.Stratum >= 1 && a.Stratum <= MaxStratum
}

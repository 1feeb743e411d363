package state

import (
	"encoding/binary"
	"fmt"
	"math"
)

// maxDepth is how deep maps and arrays may lie in each other. Ours reach 4;
// fields of newer programs may go further.
const maxDepth = 32

// maxValues is how many values a map may hold in all. A byte is enough for an
// empty map that becomes a struct of 200: without the limit a command of 4 MiB
// could ask for 800. Registering 1000 services takes some 30000.
const maxValues = 1 << 17

// checkMsgpack tells whether b is exactly one MessagePack map whose lengths all
// fit into b, so that decoding it neither recurses deeply nor allocates what is
// only announced.
func checkMsgpack(b []byte) error {
	var open []uint64 // values still to come of each map and array around us
	off, total := 0, uint64(0)
	for first := true; first || len(open) > 0; first = false {
		size, inside, err := msgpackValue(b[off:])
		if err != nil {
			return fmt.Errorf("at byte %d: %w", off, err)
		}
		if first && !isMap(b[0]) {
			return fmt.Errorf("at byte 0: %#02x does not begin a map", b[0])
		}
		off += size
		if inside > uint64(len(b)-off) { // a value takes a byte at least
			return fmt.Errorf("at byte %d: %d values announced, %d bytes left", off, inside, len(b)-off)
		}
		if total += inside; total > maxValues {
			return fmt.Errorf("at byte %d: more than %d values", off, maxValues)
		}
		if len(open) > 0 {
			open[len(open)-1]--
		}
		if inside > 0 {
			open = append(open, inside)
		}
		if len(open) > maxDepth {
			return fmt.Errorf("at byte %d: more than %d levels", off, maxDepth)
		}
		for len(open) > 0 && open[len(open)-1] == 0 {
			open = open[:len(open)-1]
		}
	}
	if off != len(b) {
		return fmt.Errorf("at byte %d: %d bytes after the end", off, len(b)-off)
	}
	return nil
}

func isMap(c byte) bool { return c&0xf0 == 0x80 || c == 0xde || c == 0xdf }

// msgpackValue measures the value at the start of b: its bytes up to its first
// element, and how many values lie inside.
func msgpackValue(b []byte) (size int, inside uint64, err error) {
	if len(b) == 0 {
		return 0, 0, fmt.Errorf("ends too early")
	}
	length, head, per := msgpackHead(b)
	switch {
	case head == 0:
		return 0, 0, fmt.Errorf("%#02x begins no value", b[0])
	case head > len(b):
		return 0, 0, fmt.Errorf("ends too early: %d bytes of %d", len(b), head)
	case per > 0:
		return head, length * uint64(per), nil
	case length > uint64(len(b)-head):
		return 0, 0, fmt.Errorf("a value of %d bytes, %d left", length, len(b)-head)
	}
	return head + int(length), 0, nil
}

// msgpackHead reads the first byte and the length after it (MessagePack
// specification, "formats"). per is 0 for a scalar of length bytes after the
// head, and the values an element has for a map (2) or array (1).
func msgpackHead(b []byte) (length uint64, head, per int) {
	c := b[0]
	switch {
	case c <= 0x7f || c >= 0xe0: // fixint
		return 0, 1, 0
	case c <= 0x8f: // fixmap
		return uint64(c & 0x0f), 1, 2
	case c <= 0x9f: // fixarray
		return uint64(c & 0x0f), 1, 1
	case c <= 0xbf: // fixstr
		return uint64(c & 0x1f), 1, 0
	case c == 0xc0 || c == 0xc2 || c == 0xc3: // nil, false, true
		return 0, 1, 0
	case c == 0xc1: // never used
		return 0, 0, 0
	case c >= 0xc4 && c <= 0xc6: // bin 8, 16, 32
		return counted(b, 1<<(c-0xc4), 0)
	case c >= 0xc7 && c <= 0xc9: // ext 8, 16, 32: a type byte after the length
		length, head, _ = counted(b, 1<<(c-0xc7), 0)
		return length + 1, head, 0
	case c == 0xca || c == 0xce || c == 0xd2: // float 32, (u)int 32
		return 4, 1, 0
	case c == 0xcb || c == 0xcf || c == 0xd3: // float 64, (u)int 64
		return 8, 1, 0
	case c == 0xcc || c == 0xd0: // (u)int 8
		return 1, 1, 0
	case c == 0xcd || c == 0xd1: // (u)int 16
		return 2, 1, 0
	case c >= 0xd4 && c <= 0xd8: // fixext 1, 2, 4, 8, 16: a type byte first
		return 1 + 1<<(c-0xd4), 1, 0
	case c >= 0xd9 && c <= 0xdb: // str 8, 16, 32
		return counted(b, 1<<(c-0xd9), 0)
	case c <= 0xdd: // array 16, 32
		return counted(b, 2<<(c-0xdc), 1)
	default: // map 16, 32
		return counted(b, 2<<(c-0xde), 2)
	}
}

// counted reads a length of 1, 2 or 4 bytes after the first byte. When b ends
// before it, head tells how long b should have been.
func counted(b []byte, width, per int) (length uint64, head, _ int) {
	head = 1 + width
	if len(b) < head {
		return math.MaxUint32, head, per
	}
	switch width {
	case 1:
		length = uint64(b[1])
	case 2:
		length = uint64(binary.BigEndian.Uint16(b[1:]))
	default:
		length = uint64(binary.BigEndian.Uint32(b[1:]))
	}
	return length, head, per
}

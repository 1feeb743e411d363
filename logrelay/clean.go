package logrelay

import (
	"encoding/binary"
	"math/bits"
)

// appendClean writes text with its control characters as rsyslog writes them:
// '#' and three octal digits. Nothing a sender writes begins a new line.
func appendClean(dst, text []byte) []byte {
	for {
		n := clean(text)
		dst = append(dst, text[:n]...)
		if n == len(text) {
			return dst
		}
		c := text[n]
		dst = append(dst, '#', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
		text = text[n+1:]
	}
}

// A byte of each of eight.
const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// clean is how many bytes in front of the first control character text has. It
// looks at eight at once: all of nearly every line is looked at.
func clean(text []byte) int {
	i := 0
	for ; i+8 <= len(text); i += 8 {
		// The lowest mark is true; a borrow makes false ones above it alone.
		x := binary.LittleEndian.Uint64(text[i:])
		del := x ^ 0x7f*ones
		if marks := ((x-0x20*ones)&^x | (del-ones)&^del) & highs; marks != 0 {
			return i + bits.TrailingZeros64(marks)/8
		}
	}
	for ; i < len(text); i++ {
		if c := text[i]; c < 0x20 || c == 0x7f {
			return i
		}
	}
	return i
}

package logrelay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// cleanByByte is appendClean as slow as it is plain.
func cleanByByte(text []byte) (out []byte) {
	for _, c := range text {
		if c < 0x20 || c == 0x7f {
			out = fmt.Appendf(out, "#%03o", c)
			continue
		}
		out = append(out, c)
	}
	return out
}

// TestNoControlCharacterIsMissed: each byte alone at each place of texts up to
// three words, and beside any other.
func TestNoControlCharacterIsMissed(t *testing.T) {
	check := func(text []byte) {
		t.Helper()
		if got, want := appendClean([]byte("> "), text), append([]byte("> "), cleanByByte(text)...); !bytes.Equal(got, want) {
			t.Fatalf("%q: %q, want %q", text, got, want)
		}
	}
	for c := range 256 {
		for size := range 25 {
			for at := range size {
				text := bytes.Repeat([]byte{'x'}, size)
				text[at] = byte(c)
				check(text)
			}
		}
		for d := range 256 {
			check([]byte{'x', byte(c), byte(d), 'x', 'x', 'x', 'x', 'x'})
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		text := make([]byte, random.IntN(40))
		for i := range text {
			// Near the bounds, mostly.
			text[i] = []byte{0x1f, 0x20, 0x21, 0x7e, 0x7f, 0x80, 0x81, 0, 1, 0xff, 0x9f, 0xa0, byte(random.Uint32())}[random.IntN(13)]
		}
		check(text)
	}
}

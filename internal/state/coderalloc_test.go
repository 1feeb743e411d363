//go:build !race

package state

import (
	"bytes"
	"testing"
)

// What each server does for each write: two allocations and five, and with coders
// that are made anew six and seven. The race detector takes some coders out of the
// pools: make test runs this without it.
func TestCommandsAreCodedWithoutMakingCoders(t *testing.T) {
	cmd := KV{Verb: Set, Entry: Entry{Key: "bench/1/2", Value: bytes.Repeat([]byte("v"), 256)}}
	data, err := Encode(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Encode(cmd); err != nil {
			t.Fatal(err)
		}
	}); n > 4 {
		t.Errorf("Encode: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Decode(data); err != nil {
			t.Fatal(err)
		}
	}); n > 6 {
		t.Errorf("Decode: %v allocations", n)
	}
}

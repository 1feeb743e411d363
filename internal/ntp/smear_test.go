package ntp

import (
	"testing"
	"time"
)

func TestSmearIsSaidAsNtpdAndChronydDo(t *testing.T) {
	for _, test := range []struct {
		reference Reference
		ahead     time.Duration
		ok        bool
	}{
		{Reference{254, 0, 0, 0}, 0, true},
		{Reference{254, 0xf0, 0, 0}, -250 * time.Millisecond, true},
		{Reference{254, 0x10, 0, 0}, 250 * time.Millisecond, true},
		{Reference{254, 0xc0, 0, 0}, -time.Second, true},
		{Reference{254, 0x80, 0, 0}, 0, false}, // two seconds
		{Reference{127, 127, 1, 255}, 0, true},
		{Reference{127, 127, 1, 1}, 0, false},
		{Reference{192, 0, 2, 1}, 0, false},
		{Reference{'G', 'P', 'S', 0}, 0, false},
	} {
		if ahead, ok := test.reference.Smear(); ahead != test.ahead || ok != test.ok {
			t.Errorf("%v: %v, %v", test.reference, ahead, ok)
		}
	}
	for _, ahead := range []time.Duration{0, -time.Second, time.Second, -499994213, 249997106, 238} {
		got, ok := SmearReference(ahead).Smear()
		if d := (got - ahead).Abs(); !ok || d > 120 {
			t.Errorf("%v is written and read as %v", ahead, got)
		}
	}
}

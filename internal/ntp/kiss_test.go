package ntp

import (
	"errors"
	"testing"
)

// Only three codes are a refusal (RFC 5905 §7.4); ntpd says STEP while it sets
// its own clock, and wants to be asked again.
func TestOnlyARefusalIsOne(t *testing.T) {
	now := at("2026-01-01T00:00:00Z")
	for code, refused := range map[string]bool{
		"DENY": true, "RSTR": true, "RATE": true, "INIT": false, "STEP": false, "ACST": false, "XABC": false, "GPS\x00": false,
	} {
		a, err := Match(reply(func(p *Packet) { p.Leap, p.Stratum, p.ReferenceID = LeapUnknown, 0, Reference([]byte(code)) }), 7, now, now)
		if errors.As(err, new(*KissError)) != refused || err == nil && a.Synchronised() {
			t.Errorf("%s: refused: %v, synchronised: %v; want refused: %v, and never synchronised", code, err, a.Synchronised(), refused)
		}
	}
}

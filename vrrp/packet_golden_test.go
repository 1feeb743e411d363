package vrrp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// captured are the IP packets of testdata/packets and what they say.
var captured = map[string]Advert{
	"v2-none": {Version: 2, VRID: 51, Priority: 100, Interval: time.Second, Addresses: virtual4},
	// keepalived cut "longer-than-eight".
	"v2-pass":        {Version: 2, VRID: 51, Priority: 150, Interval: 2 * time.Second, AuthType: AuthPass, Password: [8]byte([]byte("longer-t")), Addresses: virtual4[:1]},
	"v2-resign":      {Version: 2, VRID: 51, Priority: 0, Interval: time.Second, Addresses: virtual4[:1]},
	"v3-multicast":   {Version: 3, VRID: 52, Priority: 254, Interval: 100 * time.Millisecond, Addresses: []netip.Addr{virtual4[0], virtual4[1], netip.MustParseAddr("10.1.0.102")}},
	"v3-unicast":     {Version: 3, VRID: 52, Priority: 100, Interval: 250 * time.Millisecond, Addresses: virtual4[:1]},
	"v3-resign":      {Version: 3, VRID: 52, Priority: 0, Interval: 100 * time.Millisecond, Addresses: virtual4[:1]},
	"v3-owner":       {Version: 3, VRID: 52, Priority: 255, Interval: 40950 * time.Millisecond, Addresses: virtual4[:1]},
	"v3-ipv6":        {Version: 3, VRID: 53, Priority: 100, Interval: 500 * time.Millisecond, Addresses: virtual6},
	"v3-ipv6-resign": {Version: 3, VRID: 53, Priority: 0, Interval: 500 * time.Millisecond, Addresses: virtual6[:1]},
}

// readPacket reads a file of testdata/packets.
func readPacket(t testing.TB, path string) (payload []byte, src, dst netip.Addr) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		if line[0] != '#' {
			digits.WriteString(strings.Join(strings.Fields(line), ""))
		}
	}
	packet, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if packet[0]>>4 == 4 {
		src, dst = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		return packet[20:binary.BigEndian.Uint16(packet[2:])], src, dst
	}
	src, dst = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	return packet[40 : 40+binary.BigEndian.Uint16(packet[4:])], src, dst
}

func TestKeepalivedIsUnderstoodAndSpokenToItsLastBit(t *testing.T) {
	paths, err := filepath.Glob("testdata/packets/*.hex")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) != len(captured) {
		t.Errorf("%d files, %d descriptions", len(paths), len(captured))
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".hex")
		payload, src, dst := readPacket(t, path)
		var got Advert
		if err := got.Parse(payload, src, dst); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(captured[name], got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if again := got.Append(nil, src, dst, got.Checksum); !bytes.Equal(payload, again) {
			t.Errorf("%s:\nkeepalived sent %x\nwe would send   %x", name, payload, again)
		}
	}
}

func TestReservedBitsAndPaddingAreIgnored(t *testing.T) {
	v3 := samples()[2]
	packet := v3.append(nil)
	packet[4] |= 0xf0 // RFC 9568 §5.2.6: ignored on reception
	binary.BigEndian.PutUint16(packet[checksumAt:], 0)
	binary.BigEndian.PutUint16(packet[checksumAt:], ^fold(pseudo(add(0, packet), v3.src, v3.dst, len(packet))))
	packet = append(packet, 0xde, 0xad, 0xbe) // what the link padded
	var got Advert
	if err := got.Parse(packet, v3.src, v3.dst); err != nil {
		t.Fatal(err)
	}
	if got.Interval != v3.advert.Interval || len(got.Addresses) != 2 {
		t.Errorf("read %+v", got)
	}
}

func TestIntervalsThatTheWireCannotSayBecomeTheNearest(t *testing.T) {
	for _, test := range []struct {
		version   uint8
		says, has time.Duration
	}{
		{2, 500 * time.Millisecond, time.Second}, {2, 300 * time.Second, 255 * time.Second},
		{3, time.Millisecond, 10 * time.Millisecond}, {3, time.Minute, 40950 * time.Millisecond}, {3, 104 * time.Millisecond, 100 * time.Millisecond},
	} {
		a := Advert{Version: test.version, VRID: 1, Priority: 100, Interval: test.says, Addresses: virtual4}
		var got Advert
		if err := got.Parse(a.Append(nil, node1, group4, PseudoHeader), node1, group4); err != nil {
			t.Fatal(err)
		}
		if got.Interval != test.has {
			t.Errorf("version %d, %v: on the wire %v, want %v", test.version, test.says, got.Interval, test.has)
		}
	}
}

func TestPacketsCostNoMemory(t *testing.T) {
	for _, s := range samples() {
		buf := make([]byte, 0, 256)
		got := Advert{Addresses: make([]netip.Addr, 0, 8)}
		if n := testing.AllocsPerRun(100, func() {
			buf = s.append(buf[:0])
			if err := got.Parse(buf, s.src, s.dst); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", s.name, n)
		}
		buf[checksumAt] ^= 1
		if n := testing.AllocsPerRun(100, func() { _ = got.Parse(buf, s.src, s.dst) }); n > 0 {
			t.Errorf("%s, garbage: %v allocations", s.name, n)
		}
	}
}

// FuzzParse: no packet makes Parse panic, and what it accepts can be sent and
// says the same.
func FuzzParse(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.append(nil), s.src.Is6(), s.dst.IsMulticast())
	}
	paths, err := filepath.Glob("testdata/packets/*.hex")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		payload, src, dst := readPacket(f, path)
		f.Add(payload, src.Is6(), dst.IsMulticast())
	}
	f.Fuzz(func(t *testing.T, payload []byte, v6, multicast bool) {
		src, dst := node1, node2
		switch {
		case v6:
			src, dst = link1, group6
		case multicast:
			dst = group4
		}
		// A fuzzer does not find sums: mend them, so that the rest is reached.
		if len(payload) >= headerLen {
			mend(payload, src, dst)
		}
		var first, second Advert
		if first.Parse(payload, src, dst) != nil {
			return
		}
		packet := first.Append(nil, src, dst, first.Checksum)
		if err := second.Parse(packet, src, dst); err != nil {
			t.Fatalf("%x was accepted, and as %x it is not: %v", payload, packet, err)
		}
		if diff := cmp.Diff(first, second, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%x says something else as %x:\n%s", payload, packet, diff)
		}
	})
}

// mend makes the sum of a packet right, if its length says where it ends.
func mend(payload []byte, src, dst netip.Addr) {
	length := headerLen + int(payload[3])*len(src.AsSlice())
	if payload[0]>>4 == 2 {
		length += authLen
	}
	if length > len(payload) {
		return
	}
	payload = payload[:length]
	payload[checksumAt], payload[checksumAt+1] = 0, 0
	sum := add(0, payload)
	if payload[0]>>4 == 3 {
		sum = pseudo(sum, src, dst, length)
	}
	binary.BigEndian.PutUint16(payload[checksumAt:], ^fold(sum))
}

package vrrp

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	node1    = netip.MustParseAddr("10.1.0.1")
	node2    = netip.MustParseAddr("10.1.0.2")
	group4   = netip.MustParseAddr("224.0.0.18")
	link1    = netip.MustParseAddr("fe80::1")
	group6   = netip.MustParseAddr("ff02::12")
	virtual4 = []netip.Addr{netip.MustParseAddr("10.1.0.100"), netip.MustParseAddr("10.1.0.101")}
	virtual6 = []netip.Addr{netip.MustParseAddr("fe80::100"), netip.MustParseAddr("2001:db8::100")}
)

// samples are adverts of each kind, with the addresses they travel between.
func samples() []sample {
	v2 := Advert{Version: 2, VRID: 51, Priority: 100, Interval: time.Second, Addresses: virtual4}
	pass := v2
	pass.AuthType, pass.Password = AuthPass, [8]byte{'s', 'e', 'c', 'r', 'e', 't'}
	v3 := Advert{Version: 3, VRID: 51, Priority: 254, Interval: 100 * time.Millisecond, Addresses: virtual4}
	plain := v3
	plain.Checksum = Plain
	v6 := v3
	v6.Addresses, v6.Priority = virtual6, 0
	return []sample{
		{"v2", v2, node1, group4}, {"v2 PASS", pass, node1, node2},
		{"v3", v3, node1, group4}, {"v3 unicast", v3, node1, node2}, {"v3 plain", plain, node1, group4},
		{"v3 IPv6", v6, link1, group6},
	}
}

type sample struct {
	name     string
	advert   Advert
	src, dst netip.Addr
}

func (s sample) append(b []byte) []byte { return s.advert.Append(b, s.src, s.dst, s.advert.Checksum) }

func TestParseReadsWhatAppendWrote(t *testing.T) {
	for _, s := range samples() {
		var got Advert
		if err := got.Parse(s.append(nil), s.src, s.dst); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		if diff := cmp.Diff(s.advert, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range samples() {
		packet := s.append(nil)
		for i := range packet {
			damaged := append([]byte(nil), packet...)
			damaged[i] ^= 0x10
			if err := new(Advert).Parse(damaged, s.src, s.dst); err == nil {
				t.Errorf("%s: a flipped bit of byte %d was not noticed", s.name, i)
			}
			if err := new(Advert).Parse(packet[:i], s.src, s.dst); !errors.Is(err, ErrShort) {
				t.Errorf("%s: cut to %d bytes: %v", s.name, i, err)
			}
		}
	}
}

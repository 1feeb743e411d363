package rawsock

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	"golang.org/x/net/bpf"
)

func ethernet() net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, 1} }

func infiniband() net.HardwareAddr {
	b, _ := hex.DecodeString("8000004afe800000000000000002c903000e2f01")
	return b
}

func golden(t *testing.T, what string, got []byte, want ...string) {
	t.Helper()
	if text := hex.EncodeToString(got); text != strings.Join(want, "") {
		t.Errorf("%s:\n got %s\nwant %s", what, text, strings.Join(want, ""))
	}
}

func TestPacketsHaveTheBytesOfTheStandards(t *testing.T) {
	a := netip.MustParseAddr("10.1.0.101")
	b, err := marshalARP(arp.OperationRequest, ethernet(), a, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, a)
	must(t, err)
	golden(t, "gratuitous ARP on Ethernet", b,
		"0001", "0800", "06", "04", "0001", "020000000001", "0a010065", "ffffffffffff", "0a010065")

	ib := infiniband()
	b, err = marshalARP(arp.OperationReply, ib, a, ib, a)
	must(t, err)
	golden(t, "gratuitous ARP reply on InfiniBand", b,
		"0020", "0800", "14", "04", "0002", hex.EncodeToString(ib), "0a010065", hex.EncodeToString(ib), "0a010065")

	v6 := netip.MustParseAddr("fd00::101")
	target := "fd000000000000000000000000000101"
	b, err = marshalNA(v6, ethernet())
	must(t, err)
	golden(t, "advertisement on Ethernet", b, "8800", "0000", "20000000", target, "0201", "020000000001")
	b, err = marshalNA(v6, ib)
	must(t, err)
	golden(t, "advertisement on InfiniBand", b, "8800", "0000", "20000000", target, "0203", "0000", hex.EncodeToString(ib))
	b, err = marshalNS(v6, ethernet())
	must(t, err)
	golden(t, "solicitation on Ethernet", b, "8700", "0000", "00000000", target, "0101", "020000000001")

	golden(t, "IPv4 header", appendIPv4(nil, 12, netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("224.0.0.18")),
		"45", "c0", "0020", "0000", "0000", "ff", "70", "0000", "0a010001", "e0000012")
}

func TestClaimsAreReadBackOnBothKindsOfLink(t *testing.T) {
	a, v6 := netip.MustParseAddr("10.1.0.101"), netip.MustParseAddr("fd00::101")
	for _, mac := range []net.HardwareAddr{ethernet(), infiniband()} {
		b, err := marshalARP(arp.OperationReply, mac, a, mac, a)
		must(t, err)
		if c, ok := parseARP(b, len(mac)); !ok || c.Addr != a || !bytes.Equal(c.MAC, mac) {
			t.Errorf("ARP: %v, %v", c, ok)
		}
		b, err = marshalNA(v6, mac)
		must(t, err)
		if c, ok := parseNA(Packet{Payload: b, TTL: 255}, len(mac)); !ok || c.Addr != v6 || !bytes.Equal(c.MAC, mac) {
			t.Errorf("NA: %v, %v", c, ok)
		}
		if c, ok := parseNA(Packet{Payload: b, TTL: 254}, len(mac)); ok {
			t.Errorf("an advertisement from behind a router: %v", c)
		}
	}
}

func TestFragmentsAndCutPacketsAreIgnored(t *testing.T) {
	whole := append(appendIPv4(nil, 4, netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("224.0.0.18")), 1, 2, 3, 4)
	if p, ok := parseIPv4(append(bytes.Clone(whole), 0, 0, 0)); !ok || string(p.Payload) != "\x01\x02\x03\x04" {
		t.Errorf("padding is not cut off: %v, %v", p, ok)
	}
	for n := range whole {
		if _, ok := parseIPv4(whole[:n]); ok {
			t.Errorf("%d bytes of %d were taken", n, len(whole))
		}
	}
	whole[6] = 0x20 // more fragments
	if _, ok := parseIPv4(whole); ok {
		t.Error("a fragment was taken")
	}
}

// filters are many addresses, and the filters that let only them pass.
func filters(t *testing.T, count int) (addrs []netip.Addr, forARP, forND *bpf.VM) {
	t.Helper()
	for i := range count {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, byte(i >> 7), byte(i << 1), 1}))
		addrs = append(addrs, netip.AddrFrom16([16]byte{0: 0xfd, 13: byte(i >> 7), 14: byte(i << 1), 15: 1}))
	}
	program := arpFilter(ethernet(), addrs)
	if len(program) > maxFilter {
		t.Errorf("%d addresses need %d instructions", count, len(program))
	}
	forARP, err := bpf.NewVM(program)
	must(t, err)
	forND, err = bpf.NewVM(ndFilter(addrs))
	must(t, err)
	return addrs, forARP, forND
}

func passes(t *testing.T, vm *bpf.VM, b []byte) bool {
	t.Helper()
	n, err := vm.Run(b)
	must(t, err)
	return n > 0
}

func TestFilterLetsExactlyTheWatchedPass(t *testing.T) {
	theirs := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	for _, count := range []int{0, 1, 16, 17, 33, 255 * 5} {
		addrs, forARP, forND := filters(t, count)
		for _, a := range addrs {
			if a.Is6() {
				b, err := marshalNA(a, theirs)
				must(t, err)
				if !passes(t, forND, b) {
					t.Fatalf("of %d: %v is dropped", count, a)
				}
				continue
			}
			b, err := marshalARP(arp.OperationReply, theirs, a, theirs, a)
			must(t, err)
			own, err := marshalARP(arp.OperationReply, ethernet(), a, theirs, a)
			must(t, err)
			if !passes(t, forARP, b) || passes(t, forARP, own) {
				t.Fatalf("of %d: %v is dropped, or passes from ourselves", count, a)
			}
			other, err := marshalARP(arp.OperationReply, theirs, a.Next(), theirs, a)
			must(t, err)
			if passes(t, forARP, other) {
				t.Fatalf("of %d: %v passes", count, a.Next())
			}
		}
	}
}

func FuzzARP(f *testing.F) {
	a := netip.MustParseAddr("10.1.0.101")
	b, _ := marshalARP(arp.OperationReply, ethernet(), a, ethernet(), a)
	f.Add(b)
	f.Add(appendIPoIB(nil, arp.OperationRequest, infiniband(), a, infiniband(), a))
	vm, err := bpf.NewVM(arpFilter(ethernet(), []netip.Addr{a}))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		parseARP(b, infinibandSize)
		c, ok := parseARP(b, ethernetSize)
		if !ok {
			return
		}
		var p arp.Packet
		if err := p.UnmarshalBinary(b); err != nil || p.SenderIP != c.Addr || !bytes.Equal(p.SenderHardwareAddr, c.MAC) {
			t.Errorf("package arp reads %v at %v, %v; we read %v", p.SenderIP, p.SenderHardwareAddr, err, c)
		}
		if n, err := vm.Run(b); c.Addr == a && !bytes.Equal(c.MAC, ethernet()) && (n == 0 || err != nil) {
			t.Errorf("the filter drops %v: %v", c, err)
		}
	})
}

func FuzzNA(f *testing.F) {
	b, _ := marshalNA(netip.MustParseAddr("fd00::101"), ethernet())
	f.Add(b)
	b, _ = marshalNA(netip.MustParseAddr("fd00::101"), infiniband())
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		parseNA(Packet{Payload: b, TTL: 255}, infinibandSize)
		c, ok := parseNA(Packet{Payload: b, TTL: 255}, ethernetSize)
		if !ok {
			return
		}
		// Package ndp refuses more: it reads every option.
		if m, err := ndp.ParseMessage(b); err == nil && m.(*ndp.NeighborAdvertisement).TargetAddress != c.Addr {
			t.Errorf("package ndp reads %v, we read %v", m, c)
		}
	})
}

func FuzzIP(f *testing.F) {
	f.Add(appendIPv4(nil, 0, netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("224.0.0.18")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parseIPv4(b); ok && (len(p.Payload) > len(b)-ipv4Header || !p.Src.Is4() || !p.Dst.Is4()) {
			t.Errorf("%v of %d bytes", p, len(b))
		}
		var p Packet
		if p.parseControl(b) && !p.Dst.IsValid() {
			t.Error("ok without a destination")
		}
	})
}

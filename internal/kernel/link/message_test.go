package link

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// linkMessage is a struct ifinfomsg with attributes.
func linkMessage(family byte, hardware uint16, index, flags uint32, attrs ...[]byte) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint16(b[2:], hardware)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func attribute(kind uint16, value []byte) []byte {
	b := make([]byte, unix.SizeofRtAttr, align(unix.SizeofRtAttr+len(value)))
	binary.NativeEndian.PutUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	return append(b, value...)[:cap(b)]
}

func TestInfiniBandHasLongAddresses(t *testing.T) {
	mac, broadcast := make([]byte, 20), make([]byte, 20)
	mac[19], broadcast[0] = 7, 0xff
	l, ok := parseLink(linkMessage(unix.AF_UNSPEC, unix.ARPHRD_INFINIBAND, 5, unix.IFF_UP|unix.IFF_RUNNING,
		attribute(unix.IFLA_IFNAME, []byte("ib0\x00")),
		attribute(unix.IFLA_ADDRESS, mac), attribute(unix.IFLA_BROADCAST, broadcast)))
	if !ok || l.Kind != InfiniBand || l.Name != "ib0" || len(l.MAC) != 20 || l.MAC[19] != 7 || l.Broadcast[0] != 0xff || !l.Running {
		t.Errorf("%+v, %v", l, ok)
	}
}

func TestPortThatLeavesItsBridgeIsNotDeleted(t *testing.T) {
	if l, ok := parseLink(linkMessage(unix.AF_BRIDGE, unix.ARPHRD_ETHER, 5, 0, attribute(unix.IFLA_IFNAME, []byte("eth0\x00")))); ok {
		t.Errorf("a bridge's word was taken for an interface: %+v", l)
	}
}

func TestPointToPointAddressIsOursNotThePeers(t *testing.T) {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = unix.AF_INET, 32
	binary.NativeEndian.PutUint32(b[4:], 3)
	b = append(b, attribute(unix.IFA_ADDRESS, []byte{10, 0, 0, 2})...)
	b = append(b, attribute(unix.IFA_LOCAL, []byte{10, 0, 0, 1})...)
	a, ok := parseAddr(b)
	if !ok || a.Prefix != netip.MustParsePrefix("10.0.0.1/32") || a.Link != 3 {
		t.Errorf("%+v, %v", a, ok)
	}
}

func TestFailedDetectionIsNotTentative(t *testing.T) {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1], b[4] = unix.AF_INET6, 64, 3
	b = append(b, attribute(unix.IFA_ADDRESS, netip.MustParseAddr("fd00::1").AsSlice())...)
	flags := make([]byte, 4)
	binary.NativeEndian.PutUint32(flags, unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED)
	a, ok := parseAddr(append(b, attribute(unix.IFA_FLAGS, flags)...))
	if !ok || a.Tentative || !a.Duplicate {
		t.Errorf("%+v, %v", a, ok)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(linkMessage(unix.AF_UNSPEC, unix.ARPHRD_ETHER, 2, unix.IFF_UP, attribute(unix.IFLA_IFNAME, []byte("eth0\x00"))))
	f.Add(linkMessage(unix.AF_INET, 0x2003, 2, 0, attribute(unix.IFA_LOCAL, []byte{10, 0, 0, 1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, ok := parseLink(b); ok && l.Index <= 0 {
			t.Errorf("%+v", l)
		}
		if a, ok := parseAddr(b); ok && (a.Link <= 0 || !a.Prefix.IsValid()) {
			t.Errorf("%+v", a)
		}
	})
}

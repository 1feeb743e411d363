package ipvs

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"time"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

// This file translates between our services and servers and those of
// moby/ipvs.

func family(ipv6 bool) uint16 {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// theirKey names a service and says nothing else of it.
func theirKey(k Key) *ipvs.Service {
	s := &ipvs.Service{AddressFamily: family(k.IPv6), FWMark: k.Mark}
	if k.Mark == 0 {
		s.Protocol, s.Address, s.Port = uint16(k.Protocol), k.Addr.Addr().AsSlice(), k.Addr.Port()
	}
	return s
}

// theirService tells all of a service but its servers. s must be normal.
func theirService(s Service) *ipvs.Service {
	t := theirKey(s.Key)
	t.SchedName, t.Timeout, t.Flags = s.Scheduler, uint32(s.Persistence/time.Second), uint32(s.Flags)
	if s.Persistence > 0 {
		t.Flags |= uint32(persistent)
	}
	t.Netmask = uint32(s.Granularity)
	if !s.IPv6 { // the kernel wants the mask as it stands in a packet
		t.Netmask = binary.NativeEndian.Uint32(net.CIDRMask(s.Granularity, 32))
	}
	return t
}

// ourService reads a service that the kernel told moby/ipvs of.
func ourService(t *ipvs.Service) (s Service, err error) {
	s.IPv6 = t.AddressFamily == unix.AF_INET6
	if !s.IPv6 && t.AddressFamily != unix.AF_INET {
		return s, fmt.Errorf("a service of the address family %d; %d and %d are known", t.AddressFamily, unix.AF_INET, unix.AF_INET6)
	}
	s.Scheduler, s.Flags, s.Mark = t.SchedName, Flags(t.Flags)&settable, t.FWMark
	if Flags(t.Flags)&persistent != 0 { // else the kernel keeps the number, unused
		s.Persistence = time.Duration(t.Timeout) * time.Second
	}
	s.Granularity = int(min(t.Netmask, 128))
	if !s.IPv6 {
		mask := binary.NativeEndian.AppendUint32(nil, t.Netmask)
		s.Granularity = bits.LeadingZeros32(^binary.BigEndian.Uint32(mask))
	}
	if s.Mark != 0 {
		return s, nil
	}
	addr, ok := netip.AddrFromSlice(t.Address)
	if !ok || addr.Is6() != s.IPv6 {
		return s, fmt.Errorf("a service with the address %v", t.Address)
	}
	s.Protocol, s.Addr = Protocol(t.Protocol), netip.AddrPortFrom(addr, t.Port)
	return s, nil
}

// theirServer is a real server; the kernel takes it to be of its service's
// family.
func theirServer(r Server) *ipvs.Destination {
	return &ipvs.Destination{
		Address: r.Addr.Addr().AsSlice(), Port: r.Addr.Port(), AddressFamily: family(r.Addr.Addr().Is6()),
		ConnectionFlags: uint32(r.Method), Weight: r.Weight, UpperThreshold: r.Upper, LowerThreshold: r.Lower,
	}
}

func ourServer(t *ipvs.Destination) (r Server, err error) {
	addr, ok := netip.AddrFromSlice(t.Address)
	if !ok {
		return r, fmt.Errorf("a server with the address %v", t.Address)
	}
	return Server{
		Addr: netip.AddrPortFrom(addr, t.Port), Method: Method(t.ConnectionFlags & ipvs.ConnectionFlagFwdMask),
		Weight: t.Weight, Upper: t.UpperThreshold, Lower: t.LowerThreshold,
	}, nil
}

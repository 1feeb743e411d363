package rawsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The kernel drops what is no claim before it wakes anybody, so that a storm of
// ARP costs next to nothing. A filter may let pass more than Neighbors wants,
// never less: Receive looks again.

// maxFilter is the length of the longest program that the kernel takes
// (BPF_MAXINSNS of linux/bpf_common.h).
const maxFilter = 4096

const whole = 1 << 16 // bytes to keep of a packet that passes

// leaf is how many values are compared in turn at the end of a search.
const leaf = 16

// arpFilter lets ARP pass whose sender protocol address is one of addrs and
// whose sender hardware address, as long as ours, is not ours.
func arpFilter(mac net.HardwareAddr, addrs []netip.Addr) []bpf.Instruction {
	program := require(nil, 2, 2, etherTypeIPv4)
	program = require(program, 4, 1, uint32(len(mac)))
	program = require(program, 5, 1, ipv4Size)
	program = refuse(program, arpHeader, mac)
	program = append(program, bpf.LoadAbsolute{Off: uint32(arpHeader + len(mac)), Size: 4})
	return appendSearch(program, words(addrs, netip.Addr.Is4))
}

// ndFilter lets advertisements pass whose target ends with the same 32 bits as
// one of addrs.
func ndFilter(addrs []netip.Addr) []bpf.Instruction {
	program := require(nil, 0, 1, icmpNeighborAdvertisement)
	program = append(program, bpf.LoadAbsolute{Off: naTarget + 12, Size: 4})
	return appendSearch(program, words(addrs, netip.Addr.Is6))
}

// words are the last 32 bits of the addresses of a family, sorted, each once.
func words(addrs []netip.Addr, family func(netip.Addr) bool) []uint32 {
	var all []uint32
	for _, a := range addrs {
		if family(a) {
			b := a.As16()
			all = append(all, binary.BigEndian.Uint32(b[12:]))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// require drops what has not this value there.
func require(program []bpf.Instruction, offset uint32, size int, value uint32) []bpf.Instruction {
	return append(program,
		bpf.LoadAbsolute{Off: offset, Size: size},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: 1},
		bpf.RetConstant{Val: 0})
}

// refuse drops what has all these bytes there.
func refuse(program []bpf.Instruction, offset int, b []byte) []bpf.Instruction {
	left := (len(b) + 1) / 2 // comparisons
	for ; left > 0; left-- {
		size, value := 1, uint32(b[0])
		if len(b) > 1 {
			size, value = 2, uint32(binary.BigEndian.Uint16(b))
		}
		program = append(program,
			bpf.LoadAbsolute{Off: uint32(offset), Size: size},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipFalse: uint8(2*left - 1)}) // past the drop
		b, offset = b[size:], offset+size
	}
	return append(program, bpf.RetConstant{Val: 0})
}

// appendSearch keeps what was loaded when it is one of the sorted words: a
// binary search, since jumps go forward only and conditional ones no further
// than 255.
func appendSearch(program []bpf.Instruction, words []uint32) []bpf.Instruction {
	if len(words) <= leaf {
		for i, w := range words {
			program = append(program, bpf.JumpIf{Cond: bpf.JumpEqual, Val: w, SkipTrue: uint8(len(words) - i)})
		}
		return append(program, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: whole})
	}
	middle := len(words) / 2
	lower := appendSearch(nil, words[:middle])
	program = append(program,
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: words[middle], SkipFalse: 1},
		bpf.Jump{Skip: uint32(len(lower))})
	return appendSearch(append(program, lower...), words[middle:])
}

// attach makes the program the filter of a socket, in place of the one before;
// when it is longer than the kernel takes, or has memory for
// (net.core.optmem_max), the wide one.
func attach(fd int, program, wide []bpf.Instruction) error {
	if len(program) <= maxFilter {
		err := attachOne(fd, program)
		if !errors.Is(err, unix.ENOMEM) {
			return err
		}
	}
	// The wide one is small: with it in place there is room for a large one.
	if err := attachOne(fd, wide); err != nil || len(program) > maxFilter {
		return err
	}
	if err := attachOne(fd, program); err != nil && !errors.Is(err, unix.ENOMEM) {
		return err
	}
	return nil
}

func attachOne(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble a filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("attach a filter of %d instructions: %w", len(code), err)
	}
	return nil
}

// wideARP and wideND let everything pass that may be a claim of anything.
func wideARP() []bpf.Instruction {
	return append(require(nil, 2, 2, etherTypeIPv4), bpf.RetConstant{Val: whole})
}

func wideND() []bpf.Instruction {
	return append(require(nil, 0, 1, icmpNeighborAdvertisement), bpf.RetConstant{Val: whole})
}

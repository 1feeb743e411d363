package rawsock

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize   = 16
	batchPacket = 8 << 10 // bytes; an advert of 255 IPv6 addresses has half of it
	batchOOB    = 128
)

// batch is what recvmmsg(2) fills: one system call gives many packets, and
// tells by giving fewer than it might that there are no more.
type batch struct {
	ipv6    bool
	at      int // in the messages
	filled  int
	last    bool // nothing more was queued
	headers [batchSize]message
	vectors [batchSize]unix.Iovec
	from    [batchSize]unix.RawSockaddrInet6
	oob     [batchSize][batchOOB]byte
	buf     []byte
}

// message is struct mmsghdr. C pads it to the alignment of its header, as Go
// does.
type message struct {
	header unix.Msghdr
	length uint32
}

func newBatch(ipv6 bool) *batch {
	b := &batch{ipv6: ipv6, buf: make([]byte, batchSize*batchPacket)}
	for i := range b.headers {
		b.vectors[i].Base = &b.buf[i*batchPacket]
		b.vectors[i].SetLen(batchPacket)
		h := &b.headers[i].header
		h.Iov = &b.vectors[i]
		h.SetIovlen(1)
		if ipv6 {
			h.Name = (*byte)(unsafe.Pointer(&b.from[i]))
			h.Control = &b.oob[i][0]
		}
	}
	return b
}

func (b *batch) next(fd int) (Packet, error) {
	for {
		for b.at < b.filled {
			i := b.at
			b.at++
			if p, ok := b.packet(i); ok {
				return p, nil
			}
		}
		if b.last {
			b.last = false
			return Packet{}, ErrEmpty
		}
		if err := b.fill(fd); err != nil {
			return Packet{}, err
		}
	}
}

// fill takes what is queued.
func (b *batch) fill(fd int) error {
	b.at, b.filled = 0, 0
	for i := range b.headers {
		if b.ipv6 {
			h := &b.headers[i].header
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(batchOOB)
		}
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), batchSize,
			unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			b.filled, b.last = int(n), n < batchSize
			return nil
		case unix.EAGAIN:
			return ErrEmpty
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// packet reads a message; false: it is none of ours.
func (b *batch) packet(i int) (Packet, bool) {
	m := &b.headers[i]
	if m.header.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return Packet{}, false
	}
	bytes := b.buf[i*batchPacket:][:m.length]
	if !b.ipv6 {
		return parseIPv4(bytes)
	}
	p := Packet{Payload: bytes, Src: netip.AddrFrom16(b.from[i].Addr)}
	ok := p.parseControl(b.oob[i][:m.header.Controllen])
	return p, ok
}

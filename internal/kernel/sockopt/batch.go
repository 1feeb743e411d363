package sockopt

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Batch receives and sends datagrams of one UDP socket many at a time
// (recvmmsg(2), sendmmsg(2)): of what a server spends on a small datagram, the
// way into the kernel and out is a large part.
//
// It belongs to one goroutine. Receive is called, then for each datagram at
// most one Reply, then Flush. Nothing of it allocates. Sending never waits, as
// with Sender.
type Batch struct {
	raw     syscall.RawConn
	receive func(fd uintptr) bool // made once
	send    func(fd uintptr) bool

	in, out   []message
	names     []unix.RawSockaddrInet6 // large enough for both families
	packets   []byte
	controls  []byte
	replies   []byte
	sources   []byte
	inIO      []unix.Iovec
	outIO     []unix.Iovec
	size      int // of a packet
	replySize int

	received, queued, sent int
	errno                  unix.Errno
}

// NewBatch makes a Batch of count datagrams for a socket, which stays the
// caller's. What is received is cut at size bytes, what is sent has at most
// replySize.
func NewBatch(conn *net.UDPConn, count, size, replySize int) (*Batch, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("sockopt: batch: %w", err)
	}
	b := &Batch{
		raw: raw, size: size, replySize: replySize,
		in: make([]message, count), out: make([]message, count),
		names:   make([]unix.RawSockaddrInet6, count),
		packets: make([]byte, count*size), controls: make([]byte, count*PacketInfoSize),
		replies: make([]byte, count*replySize), sources: make([]byte, count*PacketInfoSize),
		inIO: make([]unix.Iovec, count), outIO: make([]unix.Iovec, count),
	}
	for i := range count {
		b.inIO[i].Base = &b.packets[i*size]
		b.inIO[i].SetLen(size)
		h := &b.in[i].header
		h.Name, h.Iov, h.Control = (*byte)(unsafe.Pointer(&b.names[i])), &b.inIO[i], &b.controls[i*PacketInfoSize]
		h.SetIovlen(1)
		b.outIO[i].Base = &b.replies[i*replySize]
		b.out[i].header.Iov = &b.outIO[i]
		b.out[i].header.SetIovlen(1)
	}
	b.receive, b.send = b.recvmmsg, b.sendmmsg
	return b, nil
}

// Receive waits for datagrams and takes what has come, one at least. The
// datagrams are valid until the next call. It fails when the socket is closed,
// and with the errors of recvmmsg(2), ICMP's among them.
func (b *Batch) Receive() (count int, err error) {
	b.received, b.queued, b.errno = 0, 0, 0
	for i := range b.in {
		b.in[i].header.Namelen = unix.SizeofSockaddrInet6
		b.in[i].header.SetControllen(PacketInfoSize)
	}
	if err := b.raw.Read(b.receive); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, b.errno
	}
	return b.received, nil
}

// recvmmsg takes what is there; not done when nothing is.
func (b *Batch) recvmmsg(fd uintptr) (done bool) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), uintptr(len(b.in)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		case 0:
			b.received = int(n)
		}
		b.errno = errno
		return true
	}
}

// Packet is the i-th datagram.
func (b *Batch) Packet(i int) []byte {
	return b.packets[i*b.size:][:min(int(b.in[i].length), b.size)]
}

// Control is the control messages of the i-th datagram, for Destination.
func (b *Batch) Control(i int) []byte {
	return b.controls[i*PacketInfoSize:][:min(int(b.in[i].header.Controllen), PacketInfoSize)]
}

// Client is who sent the i-th datagram; an IPv6 address without its zone. It
// is not valid for a datagram of another family.
func (b *Batch) Client(i int) netip.AddrPort { return addrPort(&b.names[i]) }

// Zone is the index of the interface that the sender of the i-th datagram
// belongs to; 0 unless its address is link-local.
func (b *Batch) Zone(i int) uint32 {
	if b.names[i].Family != unix.AF_INET6 {
		return 0
	}
	return b.names[i].Scope_id
}

// Room is where the next reply can be written before it is queued: empty, with
// the capacity of a reply.
func (b *Batch) Room() []byte {
	at := b.queued * b.replySize
	return b.replies[at : at : at+b.replySize]
}

// SourceRoom is where the next reply's control messages can be written.
func (b *Batch) SourceRoom() []byte {
	at := b.queued * PacketInfoSize
	return b.sources[at : at : at+PacketInfoSize]
}

// Reply queues a datagram to who sent the i-th. It was written to Room and its
// control messages (see AppendSource) to SourceRoom; anything else is copied,
// and cut at the sizes of these.
func (b *Batch) Reply(i int, reply, source []byte) {
	at := b.queued
	room, sources := b.replies[at*b.replySize:][:b.replySize], b.sources[at*PacketInfoSize:][:PacketInfoSize]
	n, m := len(reply), len(source)
	if n > 0 && &reply[0] != &room[0] {
		n = copy(room, reply)
	}
	if m > 0 && &source[0] != &sources[0] {
		m = copy(sources, source)
	}
	h := &b.out[at].header
	h.Name, h.Namelen = b.in[i].header.Name, b.in[i].header.Namelen
	b.outIO[at].SetLen(n)
	h.Control = nil
	h.SetControllen(m)
	if m > 0 {
		h.Control = &sources[0]
	}
	b.queued++
}

// Flush sends what is queued. One that the kernel does not take is passed
// over; failed is how many.
func (b *Batch) Flush() (failed int) {
	for b.sent = 0; b.sent < b.queued; {
		b.errno = 0
		if err := b.raw.Write(b.send); err != nil {
			return failed + b.queued - b.sent
		}
		if b.errno != 0 {
			failed++
			b.sent++
		}
	}
	b.queued = 0
	return failed
}

// sendmmsg sends from the first unsent on. An error is that of the first; one
// of a later datagram ends the call, and the next begins with it.
func (b *Batch) sendmmsg(fd uintptr) (done bool) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[b.sent])), uintptr(b.queued-b.sent), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno == 0 {
			b.sent += int(n)
		}
		b.errno = errno
		return true
	}
}

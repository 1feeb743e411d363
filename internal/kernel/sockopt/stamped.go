package sockopt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Timestamps makes the kernel tell, beside each datagram, when it arrived, and
// makes it able to tell when one left (SO_TIMESTAMPING, with the clock of the
// system: no hardware is asked). A Stamped reads both.
func Timestamps(network, address string, conn syscall.RawConn) error {
	return set(conn, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING_NEW,
			unix.SOF_TIMESTAMPING_RX_SOFTWARE|unix.SOF_TIMESTAMPING_SOFTWARE)
	}, network, address, "SO_TIMESTAMPING")
}

// Datagram is what a Stamped received. It is valid until the next Receive.
type Datagram struct {
	Payload []byte
	From    netip.AddrPort // without the zone of a link-local address
	To      netip.Addr     // zero: the socket lacks PacketInfo
	Arrived int64          // nanoseconds since 1970 by the kernel; 0: it does not know (the socket lacks Timestamps, or just got them)
}

// Stamped receives datagrams, several a system call, and answers each of them
// alone: to where it came from, from the address that it was sent to. It does
// not allocate, and never waits for room to send (see Sender). But for Stop it
// belongs to one goroutine, whose thread waits in the kernel: going through
// Go's poller costs as much as a datagram itself.
type Stamped struct {
	file     *os.File
	fd       uintptr
	stopped  atomic.Bool
	messages []message
	slots    []slot

	unread    int // replies sent with stamp, whose time of leaving was not read yet
	departed  func(packet []byte, left int64)
	looped    []byte // one of our own packets, which the kernel gives back
	loopedOOB []byte
}

// slot is the room for one datagram.
type slot struct {
	name    unix.RawSockaddrInet6 // large enough for IPv4's
	in      unix.Iovec
	buf     []byte
	oob     []byte
	to      netip.Addr
	index   int // of the interface it came in on
	reply   unix.Msghdr
	out     unix.Iovec
	control []byte
	stamp   bool
}

// Room for control messages: the address, the time, and what surrounds them.
const (
	receiveControl = 160
	replyControl   = 80
	// headersSize is what precedes the payload in a packet on its way out.
	headersSize = 128
)

// NewStamped makes a Stamped of at most n datagrams of at most size bytes; what is
// longer is cut. It takes the socket over, closed or not. departed, which may
// be nil, is told of the replies sent with stamp: the packet as it went to the
// network, headers first, and when, in nanoseconds since 1970. It is called
// from within Receive and ReadDepartures and must not keep the packet.
func NewStamped(conn *net.UDPConn, n, size int, departed func(packet []byte, left int64)) (*Stamped, error) {
	file, err := unpolled(conn)
	if err := errors.Join(err, conn.Close()); err != nil {
		return nil, fmt.Errorf("sockopt: batch: %w", err)
	}
	b := &Stamped{
		file: file, fd: file.Fd(), departed: departed,
		messages: make([]message, n), slots: make([]slot, n),
		looped: make([]byte, headersSize+size), loopedOOB: make([]byte, receiveControl),
	}
	for i := range b.slots {
		s, m := &b.slots[i], &b.messages[i].header
		s.buf, s.oob, s.control = make([]byte, size), make([]byte, receiveControl), make([]byte, 0, replyControl)
		s.in.Base = &s.buf[0]
		s.in.SetLen(size)
		m.Name, m.Iov, m.Control = (*byte)(unsafe.Pointer(&s.name)), &s.in, &s.oob[0]
		m.SetIovlen(1)
		s.reply.Name, s.reply.Iov = m.Name, &s.out
		s.reply.SetIovlen(1)
	}
	return b, nil
}

// unpolled is a socket under another descriptor, blocking, that Go's poller has
// never seen. net.UDPConn.File puts its own into the poller, from which Fd does
// not take it out again: each datagram and each freed buffer would wake the
// thread that waits in epoll, the latter in the middle of sending, between the
// times of leaving and of arriving (45 µs on a machine that was idle).
func unpolled(conn *net.UDPConn) (*os.File, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if err := raw.Control(func(own uintptr) {
		if fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false) // for conn as well, which is about to be closed
		}
	}); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "udp"), nil
}

// Stop ends Receive, also one that waits. It may be called from any goroutine,
// before Close.
func (b *Stamped) Stop() {
	b.stopped.Store(true)
	// ENOTCONN, and whoever waits is woken all the same (inet_shutdown()).
	_ = unix.Shutdown(int(b.fd), unix.SHUT_RD)
}

// Close closes the socket. Nobody may use the Stamped any more.
func (b *Stamped) Close() error { return b.file.Close() }

// Receive waits for datagrams and returns how many there are, at least one.
// After Stop the error is net.ErrClosed; others are recvmmsg(2)'s and may
// speak of one datagram only.
func (b *Stamped) Receive() (int, error) {
	for i := range b.messages {
		m := &b.messages[i].header
		m.Namelen = uint32(unsafe.Sizeof(b.slots[i].name))
		m.SetControllen(receiveControl)
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, b.fd, uintptr(unsafe.Pointer(&b.messages[0])), uintptr(len(b.messages)), unix.MSG_WAITFORONE, 0, 0)
	switch {
	case b.stopped.Load():
		return 0, net.ErrClosed
	case errno != 0:
		return 0, errno
	}
	b.ReadDepartures()
	return int(n), nil
}

// Datagram is the i-th of what Receive received.
func (b *Stamped) Datagram(i int) Datagram {
	s, m := &b.slots[i], &b.messages[i]
	d := Datagram{Payload: s.buf[:m.length], From: addrPort(&s.name)}
	s.to, s.index = netip.Addr{}, 0
	walk(s.oob[:m.header.Controllen], func(level, kind int32, data []byte) {
		if addr, index, ok := packetInfo(level, kind, data); ok {
			s.to, s.index = addr, index
		} else if level == unix.SOL_SOCKET && kind == unix.SO_TIMESTAMPING_NEW && len(data) >= sizeofTimestamp {
			d.Arrived = nanoseconds(data)
		}
	})
	d.To = s.to
	return d
}

// Arrived is when a datagram arrived, of the control messages that came with
// it: nanoseconds since 1970 by the kernel's clock; 0 if it does not say.
func Arrived(oob []byte) (ns int64) {
	walk(oob, func(level, kind int32, data []byte) {
		if level == unix.SOL_SOCKET && kind == unix.SO_TIMESTAMPING_NEW && len(data) >= sizeofTimestamp {
			ns = nanoseconds(data)
		}
	})
	return ns
}

// sizeofTimestamp is the first of the three struct __kernel_timespec that make
// up struct scm_timestamping64: the software's.
const sizeofTimestamp = 16

func nanoseconds(timespec []byte) int64 {
	return int64(binary.NativeEndian.Uint64(timespec))*1e9 + int64(binary.NativeEndian.Uint64(timespec[8:]))
}

// Prepare readies the reply to the i-th datagram, for which Datagram was called
// before, so that nothing is left to do for Send but to send; until then the
// payload may change in place. With stamp the kernel tells departed when the
// reply left.
func (b *Stamped) Prepare(i int, payload []byte, stamp bool) {
	s := &b.slots[i]
	s.control = s.control[:0]
	if s.to.IsValid() && !s.to.IsMulticast() {
		index := 0
		if s.to.IsLinkLocalUnicast() {
			index = s.index
		}
		s.control = AppendSource(s.control, s.to, index)
	}
	if stamp {
		var flags []byte
		// The old name: kernels before 6.3 know no other here.
		s.control, flags = appendHeader(s.control, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, 4)
		binary.NativeEndian.PutUint32(flags, unix.SOF_TIMESTAMPING_TX_SOFTWARE)
	}
	s.out.Base = &payload[0]
	s.out.SetLen(len(payload))
	s.reply.Namelen = b.messages[i].header.Namelen
	s.reply.Control = nil
	if len(s.control) > 0 {
		s.reply.Control = &s.control[0]
	}
	s.reply.SetControllen(len(s.control))
	s.stamp = stamp
}

// Send sends the reply that Prepare readied. The error is EAGAIN when the
// socket has no room, else sendmsg(2)'s.
func (b *Stamped) Send(i int) error {
	s := &b.slots[i]
	for {
		// RawSyscall: with MSG_DONTWAIT it returns at once, and telling Go's
		// scheduler would cost more than it brings.
		_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, b.fd, uintptr(unsafe.Pointer(&s.reply)), unix.MSG_DONTWAIT)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return errno
		default:
			if s.stamp {
				b.unread = min(b.unread+1, maxUnread)
			}
			return nil
		}
	}
}

// msgProbe is MSG_PROBE of the kernel's linux/socket.h.
const msgProbe = 0x10

// Warm walks the way of the reply that Prepare readied, up to where a packet
// would be made, and sends nothing: what the processor forgot while the thread
// slept it fetches now, and not between the time in the reply and the network.
// It costs about as much as half a Send.
func (b *Stamped) Warm(i int) {
	s := &b.slots[i]
	m := s.reply
	m.SetIovlen(0)
	// With MSG_PROBE and no bytes, sendmsg ends after it has found the route
	// (udp_sendmsg(), do_confirm); MSG_CONFIRM takes it there: the neighbour
	// is alive, it has just asked. Whether it worked does not matter.
	_, _, _ = unix.RawSyscall(unix.SYS_SENDMSG, b.fd, uintptr(unsafe.Pointer(&m)), unix.MSG_DONTWAIT|unix.MSG_CONFIRM|msgProbe)
}

// maxUnread bounds the system calls for times that never come.
const maxUnread = 64

// ReadDepartures tells departed the times at which stamped replies left, as far
// as the kernel knows them; most network drivers do as soon as Send returns.
// Receive calls it too.
func (b *Stamped) ReadDepartures() {
	for b.unread > 0 {
		var iov unix.Iovec
		iov.Base = &b.looped[0]
		iov.SetLen(len(b.looped))
		m := unix.Msghdr{Iov: &iov, Control: &b.loopedOOB[0]}
		m.SetIovlen(1)
		m.SetControllen(len(b.loopedOOB))
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, b.fd, uintptr(unsafe.Pointer(&m)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno != 0 {
			return
		}
		b.unread--
		walk(b.loopedOOB[:m.Controllen], func(level, kind int32, data []byte) {
			if level == unix.SOL_SOCKET && kind == unix.SO_TIMESTAMPING_NEW && len(data) >= sizeofTimestamp && b.departed != nil {
				b.departed(b.looped[:n], nanoseconds(data))
			}
		})
	}
}

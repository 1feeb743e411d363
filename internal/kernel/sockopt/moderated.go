package sockopt

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Moderated receives datagrams of one UDP socket, many at a time, and is woken
// at most once a pause while they come thick, as a network card moderates its
// interrupts: of what a server spends on a small datagram that comes alone, most
// is the waking. One that comes alone is received at once; one that comes behind
// others waits for a pause at most.
//
// But for Stop it belongs to one goroutine. Receive does not allocate.
type Moderated struct {
	socket  *os.File // unknown to Go's poller
	fd      uintptr  // its
	watch   *os.File // an epoll of the socket alone, which Go's poller watches
	poll    syscall.RawConn
	ready   func(fd uintptr) bool // made once
	armed   bool                  // the epoll tells of the next datagram
	event   unix.EpollEvent
	events  [1]unix.EpollEvent
	errno   error
	stopped atomic.Bool
	stop    chan struct{}

	in      []message
	names   []unix.RawSockaddrInet6 // large enough for both families
	packets []byte
	iovecs  []unix.Iovec
	size    int // of a packet
	stride  int // from one to the next

	pause time.Duration
	timer *time.Timer
	empty bool      // the last call took all that was there
	took  int       // since it was empty
	busy  bool      // the next are waited for
	last  time.Time // it was found empty
	lasts int       // calls after Stop that are left: a sender that goes on does not keep it
}

// Room for what comes in a pause. A receive buffer of less bytes (as SO_RCVBUF
// says, which counts what the kernel needs for each datagram) could overflow.
const moderatedRoom = 16 << 20

// moderatedLasts is how many calls take what is there after Stop, at most.
const moderatedLasts = 1000

// spread keeps the beginnings of buffers of a power of two apart in the
// processor's caches, of which they would else share a few lines.
const spread = 7 * 64

// NewModerated makes a Moderated of count datagrams, of at most size bytes each,
// a call. It takes the socket over, closed or not. pause is for how long it does
// not look for datagrams while they come thick; there is none if the socket's
// receive buffer is below 16 MiB.
func NewModerated(conn *net.UDPConn, count, size int, pause time.Duration) (m *Moderated, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("sockopt: moderated: %w", err)
		}
	}()
	socket, err := unpolled(conn)
	if closed := conn.Close(); err == nil && closed != nil {
		err = errors.Join(closed, socket.Close())
	}
	if err != nil {
		return nil, err
	}
	watch, err := watched(int(socket.Fd()))
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	poll, err := watch.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, watch.Close(), socket.Close())
	}
	room, err := unix.GetsockoptInt(int(socket.Fd()), unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("getsockopt", err), watch.Close(), socket.Close())
	}
	if room < moderatedRoom {
		pause = 0
	}
	m = &Moderated{
		socket: socket, fd: socket.Fd(), watch: watch, poll: poll, stop: make(chan struct{}),
		event: unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT},
		in:    make([]message, count), names: make([]unix.RawSockaddrInet6, count), iovecs: make([]unix.Iovec, count),
		packets: make([]byte, count*(size+spread)), size: size, stride: size + spread,
		pause: pause, timer: time.NewTimer(0), empty: true, lasts: moderatedLasts,
	}
	<-m.timer.C
	for i := range count {
		m.iovecs[i].Base = &m.packets[i*m.stride]
		m.iovecs[i].SetLen(size)
		h := &m.in[i].header
		h.Name, h.Iov = (*byte)(unsafe.Pointer(&m.names[i])), &m.iovecs[i]
		h.SetIovlen(1)
	}
	m.ready = m.arrived
	return m, nil
}

// watched makes an epoll that knows of a descriptor, and tells nothing yet. Go's
// poller knows of it, not of the descriptor: else each datagram would wake the
// thread that waits in epoll, also while nobody waits for datagrams.
func watched(fd int) (*os.File, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	err = os.NewSyscallError("fcntl", unix.SetNonblock(epoll, true)) // Go's poller takes no other
	if err == nil {
		none := unix.EpollEvent{Events: unix.EPOLLONESHOT}
		err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &none))
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(epoll))
	}
	return os.NewFile(uintptr(epoll), "epoll"), nil
}

// Stop ends Receive, also one that waits. It may be called from any goroutine,
// before Close, and more than once.
func (m *Moderated) Stop() {
	if !m.stopped.Swap(true) {
		close(m.stop)
		_ = m.watch.SetReadDeadline(time.Unix(1, 0))
	}
}

// Close closes the socket. Nobody may use the Moderated any more.
func (m *Moderated) Close() error { return errors.Join(m.watch.Close(), m.socket.Close()) }

// Receive waits for datagrams and takes what has come: one at least, but for a
// call after More, which does not wait. They are valid until the next call. After
// Stop it takes what is there, and then the error is net.ErrClosed; others are
// those of recvmmsg(2), ICMP's among them, and of epoll_ctl(2).
func (m *Moderated) Receive() (count int, err error) {
	for {
		if m.busy {
			m.linger()
		}
		ended := m.stopped.Load()
		if ended {
			if m.lasts == 0 {
				return 0, net.ErrClosed
			}
			m.lasts--
		}
		count, errno := m.recvmmsg()
		switch {
		case errno == 0:
			m.took += count
			if m.empty = count < len(m.in); m.empty {
				m.rest()
			}
			return count, nil
		case errno != unix.EAGAIN:
			return 0, errno
		case !m.empty: // the datagrams before filled the last call
			m.empty = true
			m.rest()
			return 0, nil
		case ended:
			return 0, net.ErrClosed
		}
		if err := m.wait(); err != nil {
			return 0, err
		}
	}
}

// More tells whether the socket may have more than the last Receive took. Then
// the next does not wait, and gives none if it has not.
func (m *Moderated) More() bool { return !m.empty }

// rest says that the socket is empty. Where more than one datagram came in a
// pause, the next are given one to gather.
func (m *Moderated) rest() {
	now := time.Now()
	m.busy = m.pause > 0 && (m.took > 1 || now.Sub(m.last) < m.pause)
	m.took, m.last = 0, now
}

// linger waits for the end of the pause, or for Stop.
func (m *Moderated) linger() {
	m.busy = false
	m.timer.Reset(m.pause - time.Since(m.last))
	select {
	case <-m.timer.C:
	case <-m.stop:
	}
}

// wait blocks until there are datagrams, or an error to read, or Stop.
func (m *Moderated) wait() error {
	m.errno = nil
	err := m.poll.Read(m.ready)
	if m.stopped.Load() {
		return nil // Receive looks a last time
	}
	return errors.Join(err, m.errno)
}

// arrived tells whether the epoll has told of a datagram. Once it has, it tells
// of no other until it is armed again.
func (m *Moderated) arrived(epoll uintptr) (done bool) {
	if m.armed {
		n, err := unix.EpollWait(int(epoll), m.events[:], 0)
		if n == 0 || errors.Is(err, unix.EINTR) {
			return false
		}
		m.armed, m.errno = false, os.NewSyscallError("epoll_wait", err)
		return true
	}
	// It looks at the socket itself: what came before is told of as well.
	if err := unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, int(m.fd), &m.event); err != nil {
		m.errno = os.NewSyscallError("epoll_ctl", err)
		return true
	}
	m.armed = true
	return false
}

// recvmmsg takes what is there.
func (m *Moderated) recvmmsg() (int, unix.Errno) {
	for i := range m.in {
		m.in[i].header.Namelen = unix.SizeofSockaddrInet6
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, m.fd, uintptr(unsafe.Pointer(&m.in[0])), uintptr(len(m.in)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// Packet is the i-th datagram of the last Receive.
func (m *Moderated) Packet(i int) []byte {
	return m.packets[i*m.stride:][:min(int(m.in[i].length), m.size)]
}

// Cut tells whether the i-th datagram had more bytes than there was room for.
func (m *Moderated) Cut(i int) bool { return m.in[i].header.Flags&unix.MSG_TRUNC != 0 }

// Client is who sent the i-th datagram; an IPv6 address without its zone.
func (m *Moderated) Client(i int) netip.AddrPort { return addrPort(&m.names[i]) }

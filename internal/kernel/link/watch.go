package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// groups are what Watch subscribes to.
func groups() []int {
	return []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
}

// noticeBuffer is room for some thousand notices that wait for Watch, in bytes.
const noticeBuffer = 4 << 20

func openNotices() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// Without the privilege to exceed the limit, up to the limit.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, noticeBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, noticeBuffer)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// Watch calls changed for every interface and address that there is, then with
// Synced, then for every change, until ctx ends; then it returns nil. When the
// kernel had to drop notices, it lists everything again, calls changed for
// what is different from what was told before, and then again with Synced.
// A change that touches nothing in Link or Addr is not told.
//
// An interface that is deleted and made again has another index. Its addresses
// are told as gone before it is. An interface that goes down keeps its IPv4
// addresses and loses those of IPv6 (but for keep_addr_on_down).
//
// changed is called from the caller's goroutine; while it takes its time, the
// kernel keeps some thousand notices. One Watch runs at a time; another fails.
func (h *Handle) Watch(ctx context.Context, changed func(Event)) error {
	if !h.watching.TryLock() {
		return errors.New("link: watch: this handle is watching already")
	}
	defer h.watching.Unlock()
	w, err := newWatch(h.notices, changed)
	if err == nil {
		err = w.run(ctx)
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("link: watch: %w", err)
}

// watch is one run of Watch. Lists are asked for on the very socket that the
// notices come in on: so everything comes in the order in which it happened.
type watch struct {
	conn    syscall.RawConn
	file    *os.File
	port    uint32 // the socket's own address
	changed func(Event)
	table   table
	buf     []byte

	listing  uint16 // RTM_GETLINK, RTM_GETADDR: what is being listed; 0: nothing
	sequence uint32 // of the request for it
	stale    bool   // it changed while it was told: some may be missing
	attempts int
	overrun  bool // notices were dropped
}

func newWatch(file *os.File, changed func(Event)) (*watch, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &watch{conn: conn, file: file, changed: changed, table: newTable(changed), buf: make([]byte, 1<<16)}
	err = w.control(func(fd int) error {
		name, err := unix.Getsockname(fd)
		if netlink, ok := name.(*unix.SockaddrNetlink); ok {
			w.port = netlink.Pid
		}
		return err
	})
	return w, err
}

func (w *watch) control(f func(fd int) error) error {
	var failed error
	if err := w.conn.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}

func (w *watch) subscribe(option int) error {
	return w.control(func(fd int) error {
		for _, group := range groups() {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, group); err != nil {
				return fmt.Errorf("subscribe to group %d: %w", group, err)
			}
		}
		return nil
	})
}

func (w *watch) run(ctx context.Context) (err error) {
	if err := w.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if err := w.drain(); err != nil {
		return err
	}
	if err := w.subscribe(unix.NETLINK_ADD_MEMBERSHIP); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.subscribe(unix.NETLINK_DROP_MEMBERSHIP)) }()
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := w.list(unix.RTM_GETLINK); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := w.step(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// drain throws away what an earlier Watch left.
func (w *watch) drain() error {
	for {
		b, err := w.receive(false)
		if b == nil && err == nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}

// step takes in one packet of messages. After an overrun the kernel goes on
// dropping, silently, until the queue is empty: only then a list is whole.
func (w *watch) step() error {
	b, err := w.receive(!w.overrun)
	switch {
	case errors.Is(err, unix.ENOBUFS):
		w.overrun = true
		return nil
	case err != nil:
		return err
	case b != nil:
		return w.messages(b)
	case w.listing != 0: // the rest of the list is to come
		w.stale, w.overrun = true, false
		return nil
	}
	w.overrun = false
	return w.list(unix.RTM_GETLINK)
}

// receive reads one packet; without wait it returns nil when there is none.
func (w *watch) receive(wait bool) ([]byte, error) {
	var n int
	var failed error
	err := w.conn.Read(func(fd uintptr) bool {
		for {
			n, _, failed = unix.Recvfrom(int(fd), w.buf, 0)
			if failed != unix.EINTR {
				break
			}
		}
		return failed != unix.EAGAIN || !wait
	})
	if err == nil {
		err = failed
	}
	if err == unix.EAGAIN {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return w.buf[:n], nil
}

// list asks for all interfaces; all addresses come after them.
func (w *watch) list(get uint16) error {
	req := dumpRequest(get)
	w.listing, w.sequence, w.stale = get, req.Seq, false
	if get == unix.RTM_GETLINK {
		w.table.generation++
	}
	b := req.Serialize()
	return w.control(func(fd int) error {
		return unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}

func (w *watch) messages(b []byte) error {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return fmt.Errorf("the kernel sent a message of %d bytes of which %d are there", length, len(b))
		}
		if err := w.message(b[:length]); err != nil {
			return err
		}
		b = b[min(len(b), align(length)):]
	}
	return nil
}

func (w *watch) message(b []byte) error {
	kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
	ours := binary.NativeEndian.Uint32(b[8:]) == w.sequence && binary.NativeEndian.Uint32(b[12:]) == w.port
	body := b[unix.SizeofNlMsghdr:]
	if ours && flags&unix.NLM_F_DUMP_INTR != 0 {
		w.stale = true
	}
	switch kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if l, ok := parseLink(body); ok {
			w.table.link(l, kind == unix.RTM_DELLINK)
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if a, ok := parseAddr(body); ok {
			w.table.addr(a, kind == unix.RTM_DELADDR)
		}
	case unix.NLMSG_ERROR, unix.NLMSG_DONE:
		if !ours || w.listing == 0 {
			return nil
		}
		if code := int32(number(body[:min(4, len(body))])); code < 0 {
			return fmt.Errorf("list what there is: %w", unix.Errno(-code))
		}
		return w.listed()
	}
	return nil
}

// listed goes on when a list is through.
func (w *watch) listed() error {
	if w.stale {
		if w.attempts++; w.attempts >= dumps {
			return fmt.Errorf("list what there is: it changed in each of %d attempts", dumps)
		}
		return w.list(unix.RTM_GETLINK)
	}
	if w.listing == unix.RTM_GETLINK {
		return w.list(unix.RTM_GETADDR)
	}
	w.listing, w.attempts = 0, 0
	w.table.forget()
	w.changed(Event{Synced: true})
	return nil
}

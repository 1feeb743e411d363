package rawsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Pollable is what a Poller waits for: Socket and Neighbors.
type Pollable interface {
	files() (int, int) // file descriptors; -1: none
}

// Poller waits on one thread for sockets, a deadline and a wake-up call.
type Poller struct {
	epoll, timer, wake int

	pollables map[int32]Pollable
	armed     time.Time // what the timer is set to; zero: not set
	rang      bool      // it rang since, and stays readable until it is set again
	woken     bool
	events    []unix.EpollEvent
	ready     []Pollable
}

// NewPoller makes one.
func NewPoller() (*Poller, error) {
	p := &Poller{epoll: -1, timer: -1, wake: -1, pollables: map[int32]Pollable{}, events: make([]unix.EpollEvent, 64)}
	if err := p.open(); err != nil {
		return nil, fmt.Errorf("rawsock: make a poller: %w", errors.Join(err, p.Close()))
	}
	return p, nil
}

func (p *Poller) open() (err error) {
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	// A timerfd is exact; the time-out of epoll may be late by a thousandth
	// (the slack of time-outs in the kernel), and counts in milliseconds.
	if p.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return err
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	return errors.Join(p.control(unix.EPOLL_CTL_ADD, p.timer), p.control(unix.EPOLL_CTL_ADD, p.wake))
}

func (p *Poller) control(op, fd int) error {
	return unix.EpollCtl(p.epoll, op, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// Add makes Wait wait for s too. Only the goroutine that waits calls it.
func (p *Poller) Add(s Pollable) error {
	a, b := s.files()
	for _, fd := range []int{a, b} {
		if fd < 0 {
			continue
		}
		if err := p.control(unix.EPOLL_CTL_ADD, fd); err != nil {
			return fmt.Errorf("rawsock: wait for a socket: %w", err)
		}
		p.pollables[int32(fd)] = s
	}
	return nil
}

// Remove takes s off, before it is closed. Only the goroutine that waits calls
// it.
func (p *Poller) Remove(s Pollable) error {
	a, b := s.files()
	for _, fd := range []int{a, b} {
		if fd < 0 || p.pollables[int32(fd)] != s {
			continue
		}
		delete(p.pollables, int32(fd))
		if err := p.control(unix.EPOLL_CTL_DEL, fd); err != nil {
			return fmt.Errorf("rawsock: forget a socket: %w", err)
		}
	}
	return nil
}

// Wait returns when something can be received, at the deadline (zero: never)
// or at Wake, and lists what can be received (valid until the next call; one
// may turn out to be empty). A deadline in the past makes it look and return.
// It does not allocate.
func (p *Poller) Wait(deadline time.Time) ([]Pollable, error) {
	p.ready, p.woken = p.ready[:0], false
	for {
		timeout, err := p.arm(deadline)
		if err != nil {
			return nil, fmt.Errorf("rawsock: set the timer: %w", err)
		}
		n, err := unix.EpollWait(p.epoll, p.events, timeout)
		if err == unix.EINTR { // a signal of the runtime's is no reason to return
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("rawsock: wait: %w", err)
		}
		p.sort(p.events[:n])
		// The timer alone may have rung for a deadline that was put off since.
		if timeout == 0 || len(p.ready) > 0 || p.woken || !deadline.IsZero() && time.Until(deadline) <= 0 {
			return p.ready, nil
		}
	}
}

// sort tells what events are about.
func (p *Poller) sort(events []unix.EpollEvent) {
	for _, e := range events {
		switch int(e.Fd) {
		case p.timer:
			p.rang, p.armed = true, time.Time{}
			continue
		case p.wake:
			var count [8]byte
			_, _ = unix.Read(p.wake, count[:])
			p.woken = true
		default:
			p.add(p.pollables[e.Fd])
		}
	}
}

// add lists what is ready, once.
func (p *Poller) add(s Pollable) {
	if s == nil {
		return
	}
	for _, r := range p.ready {
		if r == s {
			return
		}
	}
	p.ready = append(p.ready, s)
}

// arm sets the timer, and gives epoll's time-out: 0 when it is time already.
// A timer that rings too early is left alone: every packet puts a deadline off,
// and one ring for many of them costs less.
func (p *Poller) arm(deadline time.Time) (int, error) {
	var spec unix.ItimerSpec // zero takes the timer off
	if !deadline.IsZero() {
		left := time.Until(deadline)
		if left <= 0 {
			return 0, nil
		}
		spec.Value = unix.NsecToTimespec(left.Nanoseconds())
	}
	if !p.rang && (deadline.Equal(p.armed) || !p.armed.IsZero() && (deadline.IsZero() || deadline.After(p.armed))) {
		return -1, nil
	}
	p.armed, p.rang = deadline, false
	return -1, unix.TimerfdSettime(p.timer, 0, &spec, nil)
}

// Wake ends a Wait under way, or the next one. From any goroutine, until Close.
func (p *Poller) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(p.wake, one[:]) // full is awake
}

// Close closes it, not what it waited for.
func (p *Poller) Close() error {
	var errs []error
	for _, fd := range []int{p.epoll, p.timer, p.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	p.epoll, p.timer, p.wake = -1, -1, -1
	return errors.Join(errs...)
}

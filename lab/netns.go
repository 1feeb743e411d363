package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// inNetns calls f on a thread that is in the network namespace ns, then brings
// the thread home.
func inNetns(ns, home *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() {
		defer close(result) // last: home is not needed any more
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		returned, err := false, error(nil)
		defer func() {
			// A thread that can't come home stays locked, and ends with this
			// goroutine: nothing else ever runs on it.
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			if returned {
				result <- err
			}
		}()
		err = f()
		returned = true
	}()
	err, returned := <-result
	if !returned {
		return errors.New("the function ended its goroutine; t.Fatal and runtime.Goexit are not for inside a namespace")
	}
	return err
}

// Do calls f inside the host's network namespace and returns its error: the
// sockets that f opens are the host's. Only f's own goroutine is there; those
// it starts are not, and neither are dials that a library makes in its own
// goroutines (http.Transport, a net.Dialer given a name): give these
// [Host.DialContext]. A socket keeps working after f returned, and is a dead
// end after the host lost its power. The files f sees are the machine's.
func (h *Host) Do(f func() error) error {
	s, err := h.running()
	if err != nil {
		return fmt.Errorf("lab: host %s: %w", h.name, err)
	}
	return inNetns(s.netns, h.lab.home, f)
}

// OnSwitch calls f inside the switch's network namespace, as [Host.Do] does in
// a host's, with the name of the bridge that is the network: what is bound to
// it, promiscuous, sees every frame that a host sends, also one that a fault
// keeps from its receivers.
func (l *Lab) OnSwitch(network string, f func(bridge string) error) error {
	bridge, err := l.sw.bridge(network)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return inNetns(l.sw.netns, l.home, func() error { return f(bridge) })
}

// DialContext connects from inside the host. The address must be an IP and a
// port; the host has a resolver, this process has another. It has the form
// that http.Transport takes, and works for tcp and udp.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if err := literal(address); err != nil {
		return nil, fmt.Errorf("lab: host %s: dial: %w", h.name, err)
	}
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the host, as [net.Listen] does, for tcp, at an IP and a port.
func (h *Host) Listen(network, address string) (net.Listener, error) {
	if err := literal(address); err != nil {
		return nil, fmt.Errorf("lab: host %s: listen: %w", h.name, err)
	}
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket inside the host, as [net.ListenPacket]
// does, for udp, at an IP and a port.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	if err := literal(address); err != nil {
		return nil, fmt.Errorf("lab: host %s: listen: %w", h.name, err)
	}
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// HTTPClient returns a client whose connections start at the host, one for
// each request, so that none outlives a power cut unseen.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}}
}

func literal(address string) error {
	if strings.HasPrefix(address, ":") { // all addresses, to listen
		return nil
	}
	if _, err := netip.ParseAddrPort(address); err != nil {
		return errors.Join(fmt.Errorf("%q is not an IP and a port", address), err)
	}
	return nil
}

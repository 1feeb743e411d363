package link

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// timeout bounds the wait for the kernel's answer to one request: one lock of
// the kernel guards all interfaces, and a driver may hold it for seconds.
const timeout = 10 * time.Second

// dumps is how often a list is asked for again that changed while it was told.
const dumps = 20

// Handle is a netlink connection. Its methods may be called from any
// goroutine; they wait for each other, and for the kernel at most 10 s. When a
// request got no answer, the kernel may still carry it out.
type Handle struct {
	request *nl.NetlinkSocket
	sockets map[int]*nl.SocketHandle

	watching sync.Mutex
	notices  *os.File // subscribed while Watch runs
}

// Open opens a handle in the calling thread's network namespace. Both sockets
// are made here: entering a namespace later needs a privilege (CAP_SYS_ADMIN)
// that is not needed otherwise. Add and Remove need CAP_NET_ADMIN.
func Open() (*Handle, error) {
	request, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("link: open a netlink socket: %w", err)
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = errors.Join(
		request.SetSendTimeout(&limit),
		request.SetReceiveTimeout(&limit),
		request.SetExtAck(true)) // errors come with the kernel's words
	if err != nil {
		request.Close()
		return nil, fmt.Errorf("link: set up a netlink socket: %w", err)
	}
	notices, err := openNotices()
	if err != nil {
		request.Close()
		return nil, fmt.Errorf("link: open a netlink socket for notices: %w", err)
	}
	return &Handle{
		request: request,
		sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: request}},
		notices: notices,
	}, nil
}

// Close closes it. A Watch under way ends with an error.
func (h *Handle) Close() error {
	h.request.Close()
	return h.notices.Close()
}

// Links lists the interfaces, by index.
func (h *Handle) Links() ([]Link, error) {
	links, err := list(h, unix.RTM_GETLINK, unix.RTM_NEWLINK, parseLink)
	if err != nil {
		return nil, fmt.Errorf("link: list the interfaces: %w", err)
	}
	slices.SortFunc(links, func(a, b Link) int { return a.Index - b.Index })
	return links, nil
}

// Addrs lists the addresses of all interfaces.
func (h *Handle) Addrs() ([]Addr, error) {
	addrs, err := list(h, unix.RTM_GETADDR, unix.RTM_NEWADDR, parseAddr)
	if err != nil {
		return nil, fmt.Errorf("link: list the addresses: %w", err)
	}
	return addrs, nil
}

// KeepsProtocol tells whether the kernel keeps Addr.Protocol (Linux 5.18). It
// looks at the addresses of the loopback interface, which such a kernel marks
// itself; where that is down, it can't tell and says no.
func (h *Handle) KeepsProtocol() (bool, error) {
	addrs, err := h.Addrs()
	return slices.ContainsFunc(addrs, func(a Addr) bool {
		return a.Prefix.Addr().IsLoopback() && a.Protocol == kernelLoopback
	}), err
}

// list asks for everything of a kind, again when it changed meanwhile: such a
// list may lack some.
func list[T any](h *Handle, get, answer uint16, parse func([]byte) (T, bool)) ([]T, error) {
	for range dumps {
		req := dumpRequest(get)
		req.Sockets = h.sockets
		messages, err := req.Execute(unix.NETLINK_ROUTE, answer)
		if errors.Is(err, unix.EINTR) { // nl.ErrDumpInterrupted is one
			continue
		}
		if err != nil {
			return nil, explain(err)
		}
		all := make([]T, 0, len(messages))
		for _, m := range messages {
			if one, ok := parse(m); ok {
				all = append(all, one)
			}
		}
		return all, nil
	}
	return nil, fmt.Errorf("it changed in each of %d attempts", dumps)
}

func dumpRequest(get uint16) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(get), unix.NLM_F_DUMP)
	if get == unix.RTM_GETLINK {
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	} else {
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	}
	return req
}

// Add puts an address on an interface, marked with Protocol where the kernel
// keeps it, IPv6 without duplicate address detection: that would take a second
// in which the address does not answer. One that is there already is no error
// (IPv6: with whatever prefix length), and stays as it is. Of a, only Link and
// Prefix count.
//
// An IPv6 address with a /128 is added as deprecated: it answers, but is not
// chosen as the source of what this node says.
func (h *Handle) Add(a Addr) error {
	err := h.execute(addRequest(a), a)
	if err == nil || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return fmt.Errorf("link: add %s to interface %d: %w", a.Prefix, a.Link, explain(err))
}

// Lend is Add for an address that the kernel removes by itself when it was not
// lent again for so long: also when this process and all others are dead or
// stand still. One that is there already is kept for as long from now on. The
// kernel counts whole seconds, so what is left over counts as one, and it is up
// to a second late.
func (h *Handle) Lend(a Addr, lifetime time.Duration) error {
	if lifetime <= 0 {
		return fmt.Errorf("link: lend %s for %v: the time is over", a.Prefix, lifetime)
	}
	if err := h.execute(lendRequest(a, lifetime), a); err != nil {
		return fmt.Errorf("link: lend %s to interface %d for %v: %w", a.Prefix, a.Link, lifetime, explain(err))
	}
	return nil
}

// Remove takes an address away, whoever put it there. One that is not there is
// no error, nor is an interface that is not there. The prefix length must be
// the one that it has.
func (h *Handle) Remove(a Addr) error {
	err := h.execute(removeRequest(a), a)
	if err == nil || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("link: remove %s from interface %d: %w", a.Prefix, a.Link, explain(err))
}

func (h *Handle) execute(req *nl.NetlinkRequest, a Addr) error {
	if !a.Prefix.IsValid() || a.Link <= 0 {
		return errors.New("an interface's index and an address with a prefix length are needed")
	}
	req.Sockets = h.sockets
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// explain adds what would be right to what the kernel says.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; CAP_NET_ADMIN is needed", err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", ErrNoLink, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w; is IPv6 switched off there (net.ipv6.conf.*.disable_ipv6)?", err)
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("the kernel did not answer within %v; something holds its lock of the interfaces", timeout)
	}
	return err
}

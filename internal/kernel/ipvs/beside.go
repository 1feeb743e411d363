package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumps is how often a list is asked for again that changed while it was told.
const dumps = 20

// beside is what moby/ipvs lacks, on a netlink socket of its own.
type beside struct {
	socket  *nl.NetlinkSocket
	sockets map[int]*nl.SocketHandle
	family  uint16
}

// openBeside opens it in the calling thread's network namespace. The error
// wraps ErrUnsupported when the kernel has no IPVS and can't load it.
func openBeside() (*beside, error) {
	socket, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = errors.Join(socket.SetSendTimeout(&limit), socket.SetReceiveTimeout(&limit), socket.SetExtAck(true))
	b := &beside{socket: socket, sockets: map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: {Socket: socket}}}
	if err == nil {
		b.family, err = b.resolve()
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	return b, nil
}

func (b *beside) close() { b.socket.Close() }

// resolve asks for the number that the kernel has given to IPVS. The kernel
// loads the module then, if it may.
func (b *beside) resolve() (uint16, error) {
	req := b.message(nl.GENL_ID_CTRL, nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION, 0)
	req.AddData(nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(familyName)))
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, ErrUnsupported
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the netlink family %s: %w", familyName, err)
	}
	for _, m := range answers {
		if id, ok := parseFamily(m); ok {
			return id, nil
		}
	}
	return 0, fmt.Errorf("the kernel's answer about the netlink family %s has no number", familyName)
}

func (b *beside) message(family uint16, cmd, version uint8, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(family), flags)
	req.Sockets = b.sockets
	req.AddData(&nl.Genlmsg{Command: cmd, Version: version})
	return req
}

// execute sends a request of the IPVS family and gives the answers.
func (b *beside) execute(c command, flags int, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := b.message(b.family, uint8(c), familyVersion, flags)
	for _, a := range attrs {
		req.AddData(a)
	}
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%w; CAP_NET_ADMIN is needed", err)
	case errors.Is(err, unix.EAGAIN):
		return nil, fmt.Errorf("%w within %v", ErrUnanswered, timeout)
	}
	return answers, err
}

// write sends a change and waits until it is made or refused.
func (b *beside) write(c command, attrs ...*nl.RtAttr) error {
	_, err := b.execute(c, unix.NLM_F_ACK, attrs...)
	return err
}

// request sends a change and wants no answer. The kernel makes it before the
// sending returns.
func (b *beside) request(c command, attrs ...*nl.RtAttr) error {
	req := b.message(b.family, uint8(c), familyVersion, 0)
	req.Seq = 0 // no request that is waited for has this one
	for _, a := range attrs {
		req.AddData(a)
	}
	b.socket.Lock()
	defer b.socket.Unlock()
	return b.socket.Send(req)
}

// dump asks for a list, again when it changed meanwhile.
func (b *beside) dump(c command, attrs ...*nl.RtAttr) ([][]byte, error) {
	for range dumps {
		messages, err := b.execute(c, unix.NLM_F_DUMP, attrs...)
		if !errors.Is(err, unix.EINTR) { // nl.ErrDumpInterrupted is one
			return messages, err
		}
	}
	return nil, fmt.Errorf("it changed in each of %d attempts", dumps)
}

func (b *beside) daemons() (all []Daemon, err error) {
	messages, err := b.dump(getDaemon)
	for _, m := range messages {
		if d, ok := parseDaemon(m); ok {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Daemon) int { return int(a.Role) - int(b.Role) })
	return all, err
}

// stopDaemon stops the daemon of a role, if it runs. To stop one that was
// started so lately that its thread has not run yet ends with EINTR in the
// kernel, and that is the one result which it answers to nobody, whatever the
// request wants (netlink_rcv_skb of Linux): what runs afterwards is asked for.
func (b *beside) stopDaemon(r Role) error {
	attr := daemonAttr(Daemon{Role: r})
	if err := b.request(delDaemon, attr); err != nil {
		return err
	}
	all, err := b.daemons()
	if err != nil || !slices.ContainsFunc(all, func(d Daemon) bool { return d.Role == r }) {
		return err
	}
	return b.write(delDaemon, attr) // it was refused; this one says why
}

// count asks for the counters of a service and of its servers.
func (b *beside) count(o *Observed) error {
	services, err := b.execute(getService, 0, keyAttr(o.Key))
	if err != nil {
		return err
	}
	for _, m := range services {
		o.Stats = parseServiceStats(m)
	}
	servers, err := b.dump(getServer, keyAttr(o.Key))
	if err != nil {
		return err
	}
	loads := map[netip.AddrPort]Load{}
	for _, m := range servers {
		if addr, l, ok := parseLoad(m); ok {
			loads[addr] = l
		}
	}
	o.Loads = make([]Load, len(o.Servers))
	for i, r := range o.Servers {
		o.Loads[i] = loads[r.Addr]
	}
	return nil
}

package ipvs

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// timeout bounds the wait for the kernel's answer to one request. Linux 6.1 may
// not end a backup daemon for longer when it was started milliseconds ago.
const timeout = 30 * time.Second

// dumps is how often a list is asked for again that changed while it was told.
const dumps = 20

// Handle is a netlink connection. Its methods may be called from any
// goroutine; they wait for each other, and for the kernel at most 30 s. When a
// request got no answer, the kernel may still carry it out.
type Handle struct {
	socket  *nl.NetlinkSocket
	sockets map[int]*nl.SocketHandle
	family  uint16
}

// Open opens a handle in the calling thread's network namespace. The error
// wraps ErrUnsupported when the kernel has no IPVS.
func Open() (*Handle, error) {
	socket, err := nl.Subscribe(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("ipvs: open a netlink socket: %w", err)
	}
	limit := unix.NsecToTimeval(timeout.Nanoseconds())
	err = errors.Join(
		socket.SetSendTimeout(&limit),
		socket.SetReceiveTimeout(&limit),
		socket.SetExtAck(true))
	h := &Handle{socket: socket, sockets: map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: {Socket: socket}}}
	if err == nil {
		h.family, err = h.resolve()
	}
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("ipvs: %w", err)
	}
	return h, nil
}

// Close closes it.
func (h *Handle) Close() { h.socket.Close() }

// resolve asks for the number that the kernel has given to IPVS.
func (h *Handle) resolve() (uint16, error) {
	req := h.message(nl.GENL_ID_CTRL, nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION, 0)
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

func (h *Handle) message(family uint16, cmd, version uint8, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(family), flags)
	req.Sockets = h.sockets
	req.AddData(&nl.Genlmsg{Command: cmd, Version: version})
	return req
}

// write sends a change and waits until it is made or refused.
func (h *Handle) write(c command, attrs ...*nl.RtAttr) error {
	req := h.message(h.family, uint8(c), familyVersion, unix.NLM_F_ACK)
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_GENERIC, 0)
	return explain(err)
}

// dump asks for a list, again when it changed meanwhile.
func (h *Handle) dump(c command, attrs ...*nl.RtAttr) ([][]byte, error) {
	for range dumps {
		req := h.message(h.family, uint8(c), familyVersion, unix.NLM_F_DUMP)
		for _, a := range attrs {
			req.AddData(a)
		}
		messages, err := req.Execute(unix.NETLINK_GENERIC, 0)
		if errors.Is(err, unix.EINTR) { // nl.ErrDumpInterrupted is one
			continue
		}
		return messages, explain(err)
	}
	return nil, fmt.Errorf("it changed in each of %d attempts", dumps)
}

// List tells all services of the namespace with their servers, ordered by key.
func (h *Handle) List() ([]Observed, error) {
	messages, err := h.dump(getService)
	if err != nil {
		return nil, fmt.Errorf("ipvs: list the services: %w", err)
	}
	all := make([]Observed, 0, len(messages))
	for _, m := range messages {
		o, ok := parseService(m)
		if !ok {
			return nil, errors.New("ipvs: list the services: the kernel tells of a service that can't be understood")
		}
		there, err := h.servers(&o)
		if err != nil {
			return nil, err
		}
		if there {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b Observed) int { return a.Compare(b.Key) })
	return all, nil
}

// servers completes a service; it may have gone since it was listed.
func (h *Handle) servers(o *Observed) (there bool, err error) {
	messages, err := h.dump(getServer, keyAttr(o.Key))
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ipvs: list the servers of %v: %w", o.Key, err)
	}
	type pair struct {
		Server
		Load
	}
	pairs := make([]pair, 0, len(messages))
	for _, m := range messages {
		r, l, ok := parseServer(m)
		if !ok {
			return false, fmt.Errorf("ipvs: list the servers of %v: the kernel tells of one that can't be understood", o.Key)
		}
		pairs = append(pairs, pair{r, l})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return a.Addr.Compare(b.Addr) })
	for _, p := range pairs {
		o.Servers, o.Loads = append(o.Servers, p.Server), append(o.Loads, p.Load)
	}
	return true, nil
}

// Get tells of one service, and whether it is there.
func (h *Handle) Get(k Key) (o Observed, there bool, err error) {
	req := h.message(h.family, uint8(getService), familyVersion, 0)
	req.AddData(keyAttr(k))
	messages, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if errors.Is(err, unix.ESRCH) {
		return Observed{}, false, nil
	}
	if err != nil {
		return Observed{}, false, fmt.Errorf("ipvs: look for %v: %w", k, explain(err))
	}
	for _, m := range messages {
		if o, ok := parseService(m); ok && o.Key == k {
			there, err := h.servers(&o)
			return o, there, err
		}
	}
	return Observed{}, false, fmt.Errorf("ipvs: look for %v: the kernel tells of something else", k)
}

// Apply makes one change. It needs CAP_NET_ADMIN. What a change would remove
// and is not there is no error.
func (h *Handle) Apply(c Change) error {
	if err := h.apply(c); err != nil {
		return fmt.Errorf("ipvs: %v: %w", c, err)
	}
	return nil
}

func (h *Handle) apply(c Change) error {
	key := keyAttr(c.Service.Key)
	switch c.Kind {
	case AddService:
		return explainService(h.write(newService, serviceAttr(c.Service.normal())), c.Service)
	case EditService:
		return explainService(h.write(setService, serviceAttr(c.Service.normal())), c.Service)
	case RemoveService:
		return gone(h.write(delService, key), unix.ESRCH)
	case AddServer:
		return h.write(newServer, key, serverAttr(c.Server))
	case EditServer:
		return h.write(setServer, key, serverAttr(c.Server))
	case RemoveServer:
		return gone(h.write(delServer, key, serverAttr(c.Server)), unix.ESRCH, unix.ENOENT)
	}
	return fmt.Errorf("there is no change of the kind %d", c.Kind)
}

// Daemons tells which synchronisation daemons run.
func (h *Handle) Daemons() ([]Daemon, error) {
	messages, err := h.dump(getDaemon)
	if err != nil {
		return nil, fmt.Errorf("ipvs: list the synchronisation daemons: %w", err)
	}
	var all []Daemon
	for _, m := range messages {
		if d, ok := parseDaemon(m); ok {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Daemon) int { return int(a.Role) - int(b.Role) })
	return all, nil
}

// StartDaemon starts a synchronisation daemon; one of its role must not run.
func (h *Handle) StartDaemon(d Daemon) error {
	if err := h.write(newDaemon, daemonAttr(d)); err != nil {
		return fmt.Errorf("ipvs: start the %v daemon on %s with the sync id %d: %w", d.Role, d.Interface, d.SyncID, err)
	}
	return nil
}

// StopDaemon stops the daemon of a role. One that does not run is no error.
func (h *Handle) StopDaemon(r Role) error {
	if err := gone(h.write(delDaemon, daemonAttr(Daemon{Role: r})), unix.ESRCH); err != nil {
		return fmt.Errorf("ipvs: stop the %v daemon: %w", r, err)
	}
	return nil
}

// gone forgives that what is to be removed is not there.
func gone(err error, codes ...unix.Errno) error {
	if slices.ContainsFunc(codes, func(c unix.Errno) bool { return errors.Is(err, c) }) {
		return nil
	}
	return err
}

// explain adds what would be right to what the kernel says.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; CAP_NET_ADMIN is needed", err)
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("the kernel did not answer within %v", timeout)
	}
	return err
}

func explainService(err error, s Service) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w; the kernel has no scheduler %s (module ip_vs_%s) or no engine %q", err, s.Scheduler, s.Scheduler, s.Engine)
	}
	return err
}

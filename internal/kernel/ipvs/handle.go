package ipvs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

// timeout bounds the wait for the kernel's answer to one request.
const timeout = 30 * time.Second

// ErrUnanswered: the kernel did not answer within 30 s. The handle is closed
// then, and another must be opened; the request may still be carried out.
var ErrUnanswered = errors.New("the kernel did not answer")

// Handle is a connection to the IPVS of a network namespace. Its methods may be
// called from any goroutine; they wait for each other, and for each answer of
// the kernel at most 30 s.
type Handle struct {
	mu     sync.Mutex // an answer to another's request would be thrown away
	tables *ipvs.Handle
	beside *beside
}

// Open opens a handle in the calling thread's network namespace. The error
// wraps ErrUnsupported when the kernel has no IPVS. The first call of a process
// runs modprobe, if there is one; whether the module is there is known before.
func Open() (*Handle, error) {
	b, err := openBeside()
	if err != nil {
		return nil, fmt.Errorf("ipvs: %w", err)
	}
	tables, err := ipvs.New("")
	if err != nil {
		b.close()
		return nil, fmt.Errorf("ipvs: %w", err)
	}
	return &Handle{tables: tables, beside: b}, nil
}

// Close closes it.
func (h *Handle) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tables.Close()
	h.beside.close()
}

// ask has moby/ipvs do something. It would wait for an answer without end:
// closing its socket ends that.
func (h *Handle) ask(request func() error) error {
	watch := time.AfterFunc(timeout, h.tables.Close)
	err := request()
	if !watch.Stop() || errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("%w within %v", ErrUnanswered, timeout)
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w; CAP_NET_ADMIN is needed", err)
	}
	return err
}

// List tells all services of the namespace with their servers, without
// counters, ordered by key.
func (h *Handle) List() ([]Observed, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var services []*ipvs.Service
	err := h.ask(func() (err error) {
		services, err = h.tables.GetServices()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ipvs: list the services: %w", err)
	}
	all := make([]Observed, 0, len(services))
	for _, s := range services {
		o, err := h.complete(s)
		if err != nil {
			return nil, fmt.Errorf("ipvs: list the services: %w", err)
		}
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b Observed) int { return a.Compare(b.Key) })
	return all, nil
}

// complete adds its servers to a service; when it has gone since it was listed,
// there are none.
func (h *Handle) complete(s *ipvs.Service) (o Observed, err error) {
	if o.Service, err = ourService(s); err != nil {
		return o, err
	}
	var servers []*ipvs.Destination
	err = h.ask(func() (err error) {
		servers, err = h.tables.GetDestinations(theirKey(o.Key))
		return err
	})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return o, fmt.Errorf("list the servers of %v: %w", o.Key, err)
	}
	for _, d := range servers {
		r, err := ourServer(d)
		if err != nil {
			return o, fmt.Errorf("list the servers of %v: %w", o.Key, err)
		}
		o.Servers = append(o.Servers, r)
	}
	slices.SortFunc(o.Servers, func(a, b Server) int { return a.Addr.Compare(b.Addr) })
	return o, nil
}

// Get tells of one service, without counters, and whether it is there.
func (h *Handle) Get(k Key) (o Observed, there bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s *ipvs.Service
	err = h.ask(func() (err error) {
		s, err = h.tables.GetService(theirKey(k))
		return err
	})
	if errors.Is(err, unix.ESRCH) {
		return Observed{}, false, nil
	}
	if err == nil {
		o, err = h.complete(s)
	}
	if err == nil && o.Key != k {
		err = fmt.Errorf("the kernel tells of %v", o.Key)
	}
	if err != nil {
		return Observed{}, false, fmt.Errorf("ipvs: look for %v: %w", k, err)
	}
	return o, true, nil
}

// Count adds its counters to a service that was listed; servers that have gone
// meanwhile have none.
func (h *Handle) Count(o *Observed) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.beside.count(o); err != nil {
		return fmt.Errorf("ipvs: count what %v has served: %w", o.Key, err)
	}
	return nil
}

// Apply makes one change. It needs CAP_NET_ADMIN. What a change would remove
// and is not there is no error.
func (h *Handle) Apply(c Change) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.ask(func() error { return h.apply(c) }); err != nil {
		return fmt.Errorf("ipvs: %v: %w", c, err)
	}
	return nil
}

func (h *Handle) apply(c Change) error {
	key := theirKey(c.Service.Key)
	switch c.Kind {
	case AddService:
		return explainService(h.tables.NewService(theirService(c.Service.normal())), c.Service)
	case EditService:
		return explainService(h.tables.UpdateService(theirService(c.Service.normal())), c.Service)
	case RemoveService:
		return gone(h.tables.DelService(key), unix.ESRCH)
	case AddServer:
		return h.tables.NewDestination(key, theirServer(c.Server))
	case EditServer:
		return h.tables.UpdateDestination(key, theirServer(c.Server))
	case RemoveServer:
		return gone(h.tables.DelDestination(key, theirServer(c.Server)), unix.ESRCH, unix.ENOENT)
	}
	return fmt.Errorf("there is no change of the kind %d", c.Kind)
}

// Daemons tells which synchronisation daemons run.
func (h *Handle) Daemons() ([]Daemon, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all, err := h.beside.daemons()
	if err != nil {
		return nil, fmt.Errorf("ipvs: list the synchronisation daemons: %w", err)
	}
	return all, nil
}

// StartDaemon starts a synchronisation daemon; one of its role must not run.
func (h *Handle) StartDaemon(d Daemon) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.beside.write(newDaemon, daemonAttr(d)); err != nil {
		return fmt.Errorf("ipvs: start the %v daemon on %s with the sync id %d: %w", d.Role, d.Interface, d.SyncID, err)
	}
	return nil
}

// StopDaemon stops the daemon of a role. One that does not run is no error.
func (h *Handle) StopDaemon(r Role) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := gone(h.beside.stopDaemon(r), unix.ESRCH); err != nil {
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

func explainService(err error, s Service) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w; the kernel has no scheduler %s (module ip_vs_%s)", err, s.Scheduler, s.Scheduler)
	}
	return err
}

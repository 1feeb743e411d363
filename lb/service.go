package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/check"
	"holdfast/internal/health"
	"holdfast/internal/kernel/firewall"
	"holdfast/internal/kernel/ipvs"
	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/sysctl"
	"holdfast/internal/runfile"
	"holdfast/internal/state"
)

// again is how often the plan is applied although nothing happened: somebody
// may have changed the kernel's tables.
const again = 10 * time.Second

// presumed is how long an address that is there at the start counts as held,
// while nobody says whether it is.
const presumed = 10 * time.Second

// watched is the same where the firewall is ours, too: what restarts it throws
// our rules away.
const watched = 3 * time.Second

// Config is what a Service is told.
type Config struct {
	RunDir   string // below /run; what is ours in the kernel is written down in its "lb" folder
	Settings Settings
}

// Deps is what a Service needs.
type Deps struct {
	Commands check.Commander // runs script checks; nil: none
	Log      *slog.Logger
	Metrics  prometheus.Registerer
	Board    *health.Board // nil: conditions go nowhere
	// Store has the drains, and what gossip sees; Proposer orders drains. nil:
	// this unit has no store.
	Store    state.Reader
	Proposer state.Proposer
	// Suspended tells at the end whether a successor comes that adopts what
	// is there; nil: none does.
	Suspended func() bool
}

// Service is the load balancer of a node: a run.Task. Its methods may be
// called from any goroutine.
type Service struct {
	config  Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	checks  *check.Runner
	wake    chan struct{} // 1: a plan is due

	mu       sync.Mutex
	settings Settings
	planner  *Planner
	holds    map[string]bool // VIPs, as they were told before and while it runs
	net      *sysctl.Net     // while it runs
	owner    *ipvs.Owner     // while it runs
	kept     []netip.Addr    // addresses that stand on lo, while it runs
	drained  []string        // as they were told last
	alive    []string
}

// New makes a service of settings that SettingsFrom gave. It starts nothing.
func New(config Config, deps Deps) (*Service, error) {
	if config.RunDir == "" {
		return nil, errors.New("lb: no run directory given")
	}
	m, err := newMetrics(deps.Metrics)
	s := &Service{
		config: config, deps: deps, log: deps.Log.With("service", "lb"), metrics: m, wake: make(chan struct{}, 1),
		settings: config.Settings, planner: NewPlanner(config.Settings), holds: map[string]bool{},
	}
	s.checks = check.NewRunner(check.Deps{Commands: deps.Commands, Log: s.log, Report: s.checked, NewProbe: s.newProbe})
	return s, err
}

// Reconfigure makes these the settings. What is known of services and servers
// that stay is kept. It may be called while the service does not run.
func (s *Service) Reconfigure(settings Settings) error {
	if err := s.checks.Set(definitions(settings)); err != nil {
		return fmt.Errorf("lb: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings = settings
	s.planner.Reconfigure(settings)
	for vip, holds := range s.holds {
		if holds {
			s.planner.Role(vip, Active, time.Now())
		}
	}
	s.nudge()
	return nil
}

// String is the task's name.
func (s *Service) String() string { return "lb" }

// Holds tells that the addresses of a VIP are about to be put on this node's
// interface, or are being taken away. Whoever moves them calls it before: then
// the director directs before the first client knows. That is one write to
// /proc, made on the caller's thread: microseconds. The rest follows.
func (s *Service) Holds(vip string, holds bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[vip] == holds {
		return
	}
	s.holds[vip] = holds
	role := Standby
	if holds {
		role = Active
	}
	s.planner.Role(vip, role, time.Now())
	if holds && s.net != nil && s.directs(vip) {
		if _, err := s.net.Set(BackupOnly, 0); err != nil {
			s.log.Error("direct at once", "vip", vip, "error", err)
		}
	}
	s.nudge()
}

// Keeps tells whether this node goes on taking packets for an address that
// leaves its interface, without answering for it: it stands on lo. It takes
// microseconds.
func (s *Service) Keeps(addr netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.kept, addr)
}

// directs tells whether a VIP has services that this node may direct.
func (s *Service) directs(vip string) bool {
	for _, v := range s.settings.Services {
		if v.VIP == vip && v.Director {
			return true
		}
	}
	return false
}

// Alive tells which nodes gossip sees alive.
func (s *Service) Alive(nodes []string) { s.tell(func(p *Planner) { p.Alive(nodes) }) }

// Drain tells which nodes get nobody new.
func (s *Service) Drain(nodes []string) { s.tell(func(p *Planner) { p.Drained(nodes) }) }

func (s *Service) tell(f func(*Planner)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.planner)
	s.nudge()
}

func (s *Service) nudge() {
	select {
	case s.wake <- struct{}{}:
	default: // a plan is due already
	}
}

// Plan is what the kernel should have now.
func (s *Service) Plan() Plan {
	p, _ := s.plan(time.Now())
	return p
}

func (s *Service) plan(now time.Time) (Plan, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.planner.Plan(now)
}

// Run balances until ctx ends. Then it forwards for the handover's time what
// still comes to an address that it held, and takes away what is its own; or
// leaves all of it to a successor when Suspended says so. Without services it
// does nothing and needs no privilege. It calls ready once the kernel has what
// it should have.
func (s *Service) Run(ctx context.Context, ready func()) error {
	if !s.needed() {
		ready()
	}
	for !s.needed() {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
	}
	a, end, err := s.open()
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := context.WithCancel(ctx) // an error ends what runs beside it
	defer cancel()
	if err := s.checks.Set(definitions(s.current())); err != nil {
		return fmt.Errorf("lb: %w", err)
	}
	var beside sync.WaitGroup
	beside.Go(func() { s.checks.Run(ctx) })
	beside.Go(func() { s.follow(ctx) })
	beside.Go(func() { s.attend(ctx) })
	beside.Go(func() { s.compareKeys(ctx) })
	defer beside.Wait()
	defer cancel()
	next, err := s.turn(a)
	ready()
	for err == nil {
		timer := time.NewTimer(min(s.period(), time.Until(next)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return s.leave(a)
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
		next, err = s.turn(a)
	}
	return err
}

func (s *Service) current() Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings
}

// period is how long a plan stands unapplied when nothing happens.
func (s *Service) period() time.Duration {
	if s.current().Firewall == firewall.Off {
		return again
	}
	return watched
}

func (s *Service) needed() bool { return len(s.current().Services) > 0 }

// presume looks which addresses a predecessor has left.
func (s *Service) presume(links *link.Handle) error {
	all, err := links.Links()
	if err != nil {
		return err
	}
	addrs, err := links.Addrs()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.settings.Services {
		held := slices.ContainsFunc(addrs, func(a link.Addr) bool {
			onLoopback := slices.ContainsFunc(all, func(l link.Link) bool { return l.Index == a.Link && l.Kind == link.Loopback })
			return a.Prefix.Addr() == v.Addr && !onLoopback
		})
		if held {
			s.planner.Presume(v.VIP, time.Now().Add(presumed))
		}
	}
	return nil
}

// open opens the kernel in the network namespace of this process.
func (s *Service) open() (_ *applier, end func(), err error) {
	dir := filepath.Join(s.config.RunDir, "lb")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("lb: %w", err)
	}
	at, err := runfile.Here()
	if err != nil {
		return nil, nil, fmt.Errorf("lb: %w", err)
	}
	held, err := lockSoon(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("lb: %w", err)
	}
	defer func() {
		if err != nil {
			held.Close()
		}
	}()
	a := &applier{sync: s.current().Sync.Addr}
	if a.saved, err = openSaved(filepath.Join(dir, "sysctls"), at.Boot); err != nil {
		return nil, nil, fmt.Errorf("lb: %w", err)
	}
	handle, err := ipvs.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("lb: %w", err)
	}
	owner, broken, err := ipvs.NewOwner(handle, tablesJournal(dir, at))
	if err != nil {
		handle.Close()
		return nil, nil, fmt.Errorf("lb: %w", err)
	}
	if broken > 0 {
		s.log.Warn("lines of the journal can't be read", "path", dir, "lines", broken)
	}
	links, err := link.Open()
	if err != nil {
		handle.Close()
		return nil, nil, fmt.Errorf("lb: %w", err)
	}
	net, err := sysctl.Open()
	if err != nil {
		handle.Close()
		return nil, nil, fmt.Errorf("lb: %w", errors.Join(err, links.Close()))
	}
	if err := s.presume(links); err != nil {
		handle.Close()
		return nil, nil, fmt.Errorf("lb: %w", errors.Join(err, links.Close(), net.Close()))
	}
	if a.firewall, err = firewall.Open(s.current().Firewall, s.restore); err != nil {
		handle.Close()
		return nil, nil, fmt.Errorf("lb: %w", errors.Join(err, links.Close(), net.Close()))
	}
	a.tables, a.addresses, a.sysctls = owner, links, &prompt{net, s}
	s.setKernel(net, owner)
	return a, func() {
		s.setKernel(nil, nil)
		s.keep(nil)
		handle.Close()
		if err := errors.Join(links.Close(), net.Close(), held.Close()); err != nil {
			s.log.Debug("close", "error", err)
		}
	}, nil
}

func (s *Service) setKernel(n *sysctl.Net, o *ipvs.Owner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.net, s.owner = n, o
}

// prompt are the sysctls, of which BackupOnly is set to what is right at the
// moment of the write: Holds may have set it since the plan was made.
type prompt struct {
	*sysctl.Net
	service *Service
}

func (p *prompt) Set(name string, value int) (bool, error) {
	if name != BackupOnly {
		return p.Net.Set(name, value)
	}
	p.service.mu.Lock()
	defer p.service.mu.Unlock()
	if plan, _ := p.service.planner.Plan(time.Now()); plan.Directs {
		value = 0
	}
	return p.Net.Set(name, value)
}

// turn applies the plan of this moment, and tells when the next one is due. Its
// error is that the kernel can't be spoken to by what was opened.
func (s *Service) turn(a *applier) (time.Time, error) {
	now := time.Now()
	plan, next := s.plan(now)
	changes, err := a.apply(plan)
	if len(changes) > 0 {
		s.log.Info("applied", "directs", plan.Directs, "changes", changes, "took", time.Since(now))
	}
	s.keep(a.kept)
	s.told(plan, err)
	s.metrics.applied(plan, len(changes), err)
	if errors.Is(err, ipvs.ErrUnanswered) {
		return time.Time{}, err
	}
	if next.IsZero() {
		next = now.Add(again)
	}
	return next, nil
}

func (s *Service) keep(addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept = addrs
}

const (
	conditionKernel  = "lb.kernel"
	conditionServers = "lb.servers"
)

// told raises and clears the conditions.
func (s *Service) told(plan Plan, err error) {
	if err != nil {
		s.deps.Board.Raise(conditionKernel, health.Error, err.Error())
	} else {
		s.deps.Board.Clear(conditionKernel)
	}
	var texts []string
	for _, r := range plan.Remarks {
		texts = append(texts, r.Service+": "+r.Text)
	}
	if len(texts) > 0 {
		s.deps.Board.Raise(conditionServers, health.Warning, strings.Join(texts, "; "))
	} else {
		s.deps.Board.Clear(conditionServers)
	}
}

// leave withdraws, once clients had the time to find the next director.
func (s *Service) leave(a *applier) error {
	if s.deps.Suspended != nil && s.deps.Suspended() {
		s.log.Info("left to a successor")
		return nil
	}
	s.mu.Lock()
	for vip := range s.holds {
		s.planner.Role(vip, Standby, time.Now())
	}
	s.mu.Unlock()
	for s.Plan().Directs {
		next, err := s.turn(a)
		if err != nil {
			return err
		}
		<-time.After(time.Until(next))
	}
	s.keep(nil)
	changes, err := a.apply(Plan{})
	s.log.Info("withdrawn", "changes", changes)
	return err
}

// definitions are the checks of all servers, with their names as IDs.
func definitions(s Settings) (all []check.Definition) {
	for _, v := range s.Services {
		if !v.Director {
			continue
		}
		for _, r := range v.Servers {
			if r.Check.ID != "" {
				d := r.Check
				d.Via = v.via(r)
				all = append(all, d)
			}
		}
	}
	return all
}

// checked takes a check's result: a director acts on its own.
func (s *Service) checked(r check.Report) {
	service, node, ok := strings.Cut(r.ID, " ")
	if !ok || !r.Transition {
		return
	}
	up := r.Status != state.Critical
	s.log.Info("real server", "name", service, "node", node, "up", up, "output", r.Output)
	s.tell(func(p *Planner) { p.Check(service, node, up, r.At) })
}

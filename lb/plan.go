// Package lb balances what comes to a virtual address over real servers, by
// IPVS with direct routing. A Planner says what the kernel should have; the
// Service makes it so.
package lb

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"holdfast/internal/kernel/firewall"
	"holdfast/internal/kernel/ipvs"
)

// slowSteps is in how many steps a server that comes back gets its weight.
const slowSteps = 8

// Plan is what the kernel of this node should have now. It is declared, not
// ordered; but who applies it goes through it from the top: ARP before the
// addresses that it hides, the daemons before the tables that would direct
// without them.
type Plan struct {
	// Hidden: these addresses stand on lo, so that the real server takes what
	// directors forward, and nobody is told by ARP: arp_ignore and
	// arp_announce see to that. They stay there whoever holds the address.
	Hidden  []netip.Prefix
	Sysctls []Sysctl
	Daemons []ipvs.Daemon // their interface is that of Sync.Addr
	// Directs: the tables are in force. When not, BackupOnly is set, the
	// tables are loaded and do nothing.
	Directs bool
	Tables  []ipvs.Service
	// Firewall is what a firewall has to let through, or to leave alone.
	Firewall firewall.Rules
	Remarks  []Remark
}

// Sysctl is a number below net/.
type Sysctl struct {
	Name  string
	Value int
}

// BackupOnly is the sysctl that says whether tables are in force while the
// backup daemon runs: the whole difference between directors.
const BackupOnly = "ipv4/vs/backup_only"

// acceptLocal lets packets in whose source is an address of the node's own.
const acceptLocal = "ipv4/conf/all/accept_local"

// Remark is something about a service that an admin should know.
type Remark struct {
	Service, Text string
}

// Role is a node's part in a virtual address.
type Role uint8

// The roles.
const (
	Standby Role = iota // may hold it, or has nothing to do with it
	Active              // holds it
)

func (r Role) String() string { return [...]string{"standby", "active"}[r] }

// Planner is the pure core: it is told what happens and when, and gives plans.
// It has no clock and starts nothing; it is not for several goroutines at once.
type Planner struct {
	settings Settings
	roles    map[string]*part       // by VIP
	checks   map[probed]*checkState // by service and node
	services map[string]*memory     // by service
	drained  map[string]bool        // by node
	alive    map[string]bool        // by node, as gossip sees it; nil: there is no gossip
}

type part struct {
	role     Role
	leaving  time.Time // was active, and forwards until then
	presumed time.Time // counts as active until then, unless something else is told
}

// probed is who is checked for which service.
type probed struct{ service, node string }

type checkState struct {
	up    bool
	since time.Time // slow start counts from here; zero: it has its whole weight
}

// memory is what a service's plan depends on beside what is now.
type memory struct {
	lost bool              // the quorum
	last []string          // nodes that were up when some were
	keys map[string]string // SSH host keys by node, as far as they are known
}

// NewPlanner makes a planner that knows nothing yet: everybody stands by,
// and what was not checked counts as up.
func NewPlanner(s Settings) *Planner {
	p := &Planner{roles: map[string]*part{}, checks: map[probed]*checkState{}, services: map[string]*memory{}}
	p.Reconfigure(s)
	return p
}

// Reconfigure takes other settings. What is known of services and servers that
// stay is kept.
func (p *Planner) Reconfigure(s Settings) {
	p.settings = s
	vips, checks, services := map[string]*part{}, map[probed]*checkState{}, map[string]*memory{}
	for _, v := range s.Services {
		vips[v.VIP] = keep(p.roles, v.VIP)
		services[v.Name] = keep(p.services, v.Name)
		for _, r := range v.Servers {
			if c := p.checks[probed{v.Name, r.Node}]; c != nil {
				checks[probed{v.Name, r.Node}] = c
			}
		}
	}
	p.roles, p.checks, p.services = vips, checks, services
}

func keep[T any](from map[string]*T, name string) *T {
	if old := from[name]; old != nil {
		return old
	}
	return new(T)
}

// Role tells that this node's part in a VIP is now another.
func (p *Planner) Role(vip string, r Role, now time.Time) {
	part := p.roles[vip]
	if part == nil || part.role == r && part.presumed.IsZero() {
		return
	}
	part.role, part.leaving, part.presumed = r, time.Time{}, time.Time{}
	if r == Standby {
		part.leaving = now.Add(p.settings.Handover)
	}
}

// Presume takes this node for the active one until something else is told, or
// until then: a successor finds the address where its predecessor left it.
func (p *Planner) Presume(vip string, until time.Time) {
	if part := p.roles[vip]; part != nil && part.role == Standby {
		part.presumed = until
	}
}

// Check tells that a server of a service is now up, or down.
func (p *Planner) Check(service, node string, up bool, now time.Time) {
	key := probed{service, node}
	switch c := p.checks[key]; {
	case c == nil: // the first result is no recovery
		p.checks[key] = &checkState{up: up}
	case c.up != up:
		c.up, c.since = up, now
	}
}

// Drained tells which nodes get nobody new.
func (p *Planner) Drained(nodes []string) { p.drained = set(nodes) }

// Alive tells which nodes gossip sees alive.
func (p *Planner) Alive(nodes []string) { p.alive = set(nodes) }

func set(names []string) map[string]bool {
	s := map[string]bool{}
	for _, n := range names {
		s[n] = true
	}
	return s
}

// Plan gives the plan for this moment, and when it will be another if nothing
// happens until then; the zero time: never.
func (p *Planner) Plan(now time.Time) (Plan, time.Time) {
	t := &turn{Planner: p, now: now}
	t.local()
	t.roles()
	for i := range p.settings.Services {
		if s := &p.settings.Services[i]; s.Director && (!t.plan.Directs || t.directs(s.VIP)) {
			t.service(s)
		}
	}
	slices.SortFunc(t.plan.Tables, func(a, b ipvs.Service) int { return a.Compare(b.Key) })
	return t.plan, t.next
}

// turn is one plan in the making.
type turn struct {
	*Planner
	now  time.Time
	plan Plan
	next time.Time
}

// wake has the next plan made no later than at.
func (t *turn) wake(at time.Time) {
	if t.next.IsZero() || at.Before(t.next) {
		t.next = at
	}
}

// local is what a real server needs, whoever directs.
func (t *turn) local() {
	hidden := map[netip.Prefix]bool{}
	ipv4 := false
	for _, s := range t.settings.Services {
		if !slices.ContainsFunc(s.Servers, func(r Server) bool { return r.Node == t.settings.Node }) {
			continue
		}
		hidden[netip.PrefixFrom(s.Addr, s.Addr.BitLen())] = true
		ipv4 = ipv4 || s.Addr.Is4()
	}
	t.plan.Hidden = slices.SortedFunc(maps.Keys(hidden), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	t.plan.Firewall = t.settings.rules()
	if ipv4 { // IPv6 answers for an address only on the interface that has it
		t.plan.Sysctls = append(t.plan.Sysctls,
			Sysctl{"ipv4/conf/all/arp_ignore", 1}, Sysctl{"ipv4/conf/all/arp_announce", 2})
	}
}

// roles is what a director needs.
func (t *turn) roles() {
	if !slices.ContainsFunc(t.settings.Services, func(s VirtualService) bool { return s.Director }) {
		return
	}
	for vip, part := range t.Planner.roles {
		for _, end := range []time.Time{part.leaving, part.presumed} {
			if t.now.Before(end) {
				t.wake(end)
			}
		}
		t.plan.Directs = t.plan.Directs || t.directs(vip)
	}
	// Both daemons run always: a change of role then restarts none, and the
	// one that leaves can still tell its last connections to the next.
	t.plan.Daemons = []ipvs.Daemon{{Role: ipvs.Master, SyncID: t.settings.Sync.ID}, {Role: ipvs.Backup, SyncID: t.settings.Sync.ID}}
	backup := 1
	if t.plan.Directs {
		backup = 0
	}
	t.plan.Sysctls = append(t.plan.Sysctls,
		// Who is persistent leaves a server whose weight is 0 at the next login.
		Sysctl{"ipv4/vs/expire_quiescent_template", 1},
		Sysctl{BackupOnly, backup})
	if slices.ContainsFunc(t.settings.Services, func(s VirtualService) bool { return s.Director && s.Path && s.Addr.Is4() }) {
		// The answer comes from the address, which the director has itself.
		t.plan.Sysctls = append(t.plan.Sysctls, Sysctl{acceptLocal, 1})
	}
}

// directs tells whether what comes to a VIP is forwarded by this node.
func (t *turn) directs(vip string) bool {
	part := t.Planner.roles[vip]
	return part.role == Active || t.now.Before(part.presumed) || t.leaving(vip)
}

func (t *turn) leaving(vip string) bool { return t.now.Before(t.Planner.roles[vip].leaving) }

func (t *turn) remark(s *VirtualService, format string, args ...any) {
	t.plan.Remarks = append(t.plan.Remarks, Remark{s.Name, fmt.Sprintf(format, args...)})
}

// service adds a virtual service to the plan.
func (t *turn) service(s *VirtualService) {
	v := ipvs.Service{
		Key: s.key(), Scheduler: s.Scheduler, Flags: s.Flags,
		Persistence: s.Persistence, Granularity: s.Granularity,
	}
	if differ := t.services[s.Name].differing(s.Servers); differ != "" {
		t.remark(s, "the host keys differ, so that users are warned or refused: %s", differ)
	}
	use := t.usable(s)
	sorry := t.quorum(s, use)
	for _, r := range s.Servers {
		weight, there := t.weight(s, r, use[r.Node])
		if sorry {
			weight = 0 // its sessions go on: those of a server that is removed would hang
		}
		if t.leaving(s.VIP) && r.Node != t.settings.Node {
			// The next director sends here what we are to serve ourselves:
			// what is new stays here, what is under way goes where it went.
			weight = 0
		}
		if there {
			v.Servers = append(v.Servers, ipvs.Server{
				Addr: netip.AddrPortFrom(r.Addr, s.Port), Method: ipvs.Route, Weight: weight, Upper: r.Upper, Lower: r.Lower,
			})
		}
	}
	t.paths(s)
	if sorry {
		v.Servers = append(v.Servers, ipvs.Server{Addr: netip.AddrPortFrom(s.Sorry, s.Port), Method: ipvs.Route, Weight: 1})
	}
	t.plan.Tables = append(t.plan.Tables, v)
}

// paths adds a service for each real server that leads to it alone, by a mark
// that only our checks have.
func (t *turn) paths(s *VirtualService) {
	for _, r := range s.Servers {
		if r.Mark == 0 {
			continue
		}
		t.plan.Tables = append(t.plan.Tables, ipvs.Service{
			Key: ipvs.ByMark(r.Mark, s.Addr.Is6()), Scheduler: "rr",
			Servers: []ipvs.Server{{Addr: netip.AddrPortFrom(r.Addr, 0), Method: ipvs.Route, Weight: 1}},
		})
	}
}

// usable tells which nodes count as up: those that the checks say, or the last
// ones that were when the checks say none and gossip disagrees.
func (t *turn) usable(s *VirtualService) map[string]bool {
	m := t.services[s.Name]
	up := map[string]bool{}
	for _, r := range s.Servers {
		if c := t.checks[probed{s.Name, r.Node}]; c == nil || c.up {
			up[r.Node] = true
		}
	}
	if len(up) > 0 {
		m.last = slices.Sorted(maps.Keys(up))
		return up
	}
	believed := slices.DeleteFunc(slices.Clone(m.last), func(node string) bool { return !t.alive[node] })
	if len(believed) == 0 || s.Sorry.IsValid() {
		t.remark(s, "no real server answers")
		return up
	}
	t.remark(s, "no real server answers this director, but gossip sees %v alive: they are kept", believed)
	return set(believed)
}

// quorum tells whether the sorry server takes over, and remembers whether the
// quorum is lost.
func (t *turn) quorum(s *VirtualService, use map[string]bool) (sorry bool) {
	m := t.services[s.Name]
	weight := 0
	for _, r := range s.Servers {
		if use[r.Node] && !t.drained[r.Node] {
			weight += r.Weight
		}
	}
	switch {
	case weight < s.Quorum-s.Hysteresis:
		m.lost = true
	case weight >= s.Quorum+s.Hysteresis:
		m.lost = false
	}
	if !m.lost {
		return false
	}
	if !s.Sorry.IsValid() {
		if weight > 0 {
			t.remark(s, "a weight of %d is up and %d is the quorum; what is up goes on", weight, s.Quorum)
		}
		return false
	}
	t.remark(s, "a weight of %d is up and %d is the quorum; %v takes over", weight, s.Quorum, s.Sorry)
	return true
}

// weight is a server's weight now, and whether it stands in the table at all.
func (t *turn) weight(s *VirtualService, r Server, up bool) (weight int, there bool) {
	switch {
	case !up:
		return 0, s.Inhibit || t.drained[r.Node]
	case t.drained[r.Node]:
		return 0, true
	}
	c := t.checks[probed{s.Name, r.Node}]
	if c == nil || !c.up || c.since.IsZero() || s.SlowStart <= 0 {
		return r.Weight, true
	}
	step := int(t.now.Sub(c.since) * slowSteps / s.SlowStart)
	if step >= slowSteps {
		return r.Weight, true
	}
	t.wake(c.since.Add(s.SlowStart * time.Duration(step+1) / slowSteps).Add(time.Nanosecond))
	return max(1, r.Weight*(step+1)/slowSteps), true
}

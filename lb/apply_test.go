package lb

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/kernel/firewall"
	"holdfast/internal/kernel/ipvs"
	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/sysctl"
)

// model is a kernel as it should be. What it is told is in said.
type model struct {
	tables  []ipvs.Service
	daemons []ipvs.Daemon
	addrs   []link.Addr
	mu      sync.Mutex // of numbers: a script may look at them meanwhile
	numbers map[string]int
	rules   firewall.Rules
	said    []string
	broken  error // of the daemons
}

func newModel() *model {
	return &model{
		numbers: map[string]int{
			"ipv4/conf/all/arp_ignore": 0, "ipv4/conf/all/arp_announce": 0, "ipv4/conf/eth0/arp_ignore": 0, "ipv4/conf/eth0/arp_announce": 0,
			"ipv4/vs/expire_quiescent_template": 0, BackupOnly: 0, acceptLocal: 0,
			"ipv4/conf/eth0/rp_filter": 0, "ipv4/conf/all/rp_filter": 0,
		},
		addrs: []link.Addr{
			{Link: 1, Prefix: netip.MustParsePrefix("127.0.0.1/8")},
			{Link: 1, Prefix: netip.MustParsePrefix("192.0.2.1/32")}, // somebody else's
			{Link: 2, Prefix: netip.MustParsePrefix("10.1.0.1/24")},
		},
	}
}

func (m *model) say(format string, args ...any) {
	m.said = append(m.said, fmt.Sprintf(format, args...))
}

func (m *model) Set(want []ipvs.Service) ([]ipvs.Change, error) {
	changes := ipvs.Diff(m.tables, want)
	m.tables = slices.Clone(want)
	if len(changes) > 0 {
		m.say("tables %d", len(want))
	}
	return changes, nil
}

func (m *model) SetDaemons(want []ipvs.Daemon) (bool, error) {
	if m.broken != nil {
		return false, m.broken
	}
	changed := !slices.Equal(m.daemons, want)
	m.daemons = slices.Clone(want)
	if changed {
		m.say("daemons %d", len(want))
	}
	return changed, nil
}

func (m *model) Links() ([]link.Link, error) {
	return []link.Link{{Index: 1, Name: "lo", Kind: link.Loopback}, {Index: 2, Name: "eth0", Kind: link.Ethernet}}, nil
}

func (m *model) Addrs() ([]link.Addr, error) { return slices.Clone(m.addrs), nil }

func (m *model) Add(a link.Addr) error {
	a.Protocol = link.Protocol
	m.addrs = append(m.addrs, a)
	m.say("add %v", a.Prefix)
	return nil
}

func (m *model) Remove(a link.Addr) error {
	m.addrs = slices.DeleteFunc(m.addrs, func(b link.Addr) bool { return a == b })
	m.say("remove %v", a.Prefix)
	return nil
}

func (m *model) get(name string) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.numbers[name]
	if !ok {
		return 0, fmt.Errorf("%s: %w", name, os.ErrNotExist)
	}
	return v, nil
}

func (m *model) put(name string, value int) (bool, error) {
	old, err := m.get(name)
	if err == nil && old != value {
		m.mu.Lock()
		m.numbers[name] = value
		m.mu.Unlock()
		m.say("%s=%d", name, value)
	}
	return old != value, err
}

// modelSysctls are the model's methods whose names are taken.
type modelSysctls struct{ *model }

func (m modelSysctls) Get(name string) (int, error)             { return m.get(name) }
func (m modelSysctls) Set(name string, value int) (bool, error) { return m.put(name, value) }
func (m modelSysctls) Effective(f sysctl.Family, iface, key string) (int, error) {
	all, err := m.get(sysctl.Conf(f, "all", key))
	own, err2 := m.get(sysctl.Conf(f, iface, key))
	return max(all, own), errors.Join(err, err2)
}

// modelFirewall has the rules that it was given last.
type modelFirewall struct{ *model }

func (m modelFirewall) Set(r firewall.Rules) ([]string, error) {
	m.rules = r
	return nil, nil
}

func newApplier(t *testing.T, m *model, dir string) *applier {
	t.Helper()
	old, err := openSaved(filepath.Join(dir, "sysctls"), "boot")
	if err != nil {
		t.Fatal(err)
	}
	return &applier{tables: m, addresses: m, sysctls: modelSysctls{m}, firewall: modelFirewall{m}, sync: netip.MustParseAddr("10.1.0.1"), saved: old}
}

// frontends are the settings of f1 among three.
func frontends(t *testing.T) Settings {
	return Settings{Node: "f1", Handover: time.Second, Sync: Sync{ID: 7}, Services: []VirtualService{
		scriptService(t, strings.Fields("service ssh front 10.1.0.100:22 f1=1,f2=1,f3=1 slow_start=30s sorry=10.1.0.9")),
		scriptService(t, strings.Fields("service web other 10.1.0.101:80 f2=1,f3=1")),
	}}
}

func apply(t *testing.T, a *applier, p Plan) {
	t.Helper()
	if _, err := a.apply(p); err != nil {
		t.Fatal(err)
	}
}

func TestTheAddressIsHiddenOnlyAfterARPIsSilent(t *testing.T) {
	m := newModel()
	a := newApplier(t, m, t.TempDir())
	plan, _ := NewPlanner(frontends(t)).Plan(epoch)
	apply(t, a, plan)
	order := strings.Join(m.said, ", ")
	want := "ipv4/conf/all/arp_ignore=1, ipv4/conf/all/arp_announce=2, ipv4/vs/expire_quiescent_template=1, " +
		BackupOnly + "=1, add 10.1.0.100/32, daemons 2, tables 2"
	if order != want {
		t.Errorf("the order was\n%s, want\n%s", order, want)
	}
	m.said = nil
	if apply(t, a, plan); len(m.said) != 0 {
		t.Errorf("the second time: %v", m.said)
	}
}

func TestAnInterfaceThatAnswersARPForAllKeepsTheAddressAway(t *testing.T) {
	m := newModel()
	m.numbers["ipv4/conf/eth0/arp_ignore"] = 8
	plan, _ := NewPlanner(frontends(t)).Plan(epoch)
	_, err := newApplier(t, m, t.TempDir()).apply(plan)
	if err == nil || !strings.Contains(err.Error(), "arp_ignore of eth0 is 8") {
		t.Errorf("error %v", err)
	}
	if slices.ContainsFunc(m.addrs, func(a link.Addr) bool { return a.Prefix.Addr().String() == "10.1.0.100" }) {
		t.Error("the address is there all the same")
	}
}

func TestTablesAreNotLoadedOnABackupWithoutItsDaemon(t *testing.T) {
	m := newModel()
	m.broken = errors.New("no multicast")
	p := NewPlanner(frontends(t))
	a := newApplier(t, m, t.TempDir())
	plan, _ := p.Plan(epoch)
	if _, err := a.apply(plan); !errors.Is(err, m.broken) || len(m.tables) != 0 {
		t.Errorf("%d services in force on a backup; error %v", len(m.tables), err)
	}
	p.Role("front", Active, epoch)
	plan, _ = p.Plan(epoch)
	if _, err := a.apply(plan); !errors.Is(err, m.broken) || len(m.tables) != 1 {
		t.Errorf("%d services of a director; error %v", len(m.tables), err)
	}
}

func TestTakingOverIsOneWrite(t *testing.T) {
	m := newModel()
	s := frontends(t)
	s.Services = s.Services[:1]
	p, a := NewPlanner(s), newApplier(t, m, t.TempDir())
	plan, _ := p.Plan(epoch)
	apply(t, a, plan)
	m.said = nil
	p.Role("front", Active, epoch)
	plan, _ = p.Plan(epoch)
	apply(t, a, plan)
	if want := []string{BackupOnly + "=0"}; !slices.Equal(m.said, want) {
		t.Errorf("it took %v, want %v", m.said, want)
	}
}

// A day of role changes, failures, drains and restarts in virtual time, then
// the end: nothing of ours is left, and what was others' is as it was.
func TestADayOfFlappingLeavesNoOrphan(t *testing.T) {
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 7))
		m, dir := newModel(), t.TempDir()
		before, addrs := maps.Clone(m.numbers), slices.Clone(m.addrs)
		p, a := NewPlanner(frontends(t)), newApplier(t, m, dir)
		nodes, vips := []string{"f1", "f2", "f3"}, []string{"front", "other"}
		changes := 0
		for now := epoch; now.Before(epoch.Add(24 * time.Hour)); {
			switch r.IntN(8) {
			case 0, 1, 2:
				p.Role(vips[r.IntN(2)], Role(r.IntN(2)), now)
			case 3, 4:
				p.Check([]string{"ssh", "web"}[r.IntN(2)], nodes[r.IntN(3)], r.IntN(2) == 0, now)
			case 5:
				p.Drained(nodes[:r.IntN(3)])
			case 6:
				p.Alive(nodes[r.IntN(3):])
			case 7: // the process is replaced: it knows what is in the kernel and on disk
				p, a = NewPlanner(frontends(t)), newApplier(t, m, dir)
			}
			plan, next := p.Plan(now)
			if !next.IsZero() && !next.After(now) {
				t.Fatalf("seed %d: at %v the next plan is due at %v", seed, now, next)
			}
			m.said = nil
			apply(t, a, plan)
			changes += len(m.said)
			consistent(t, m, plan)
			now = now.Add(time.Duration(1+r.IntN(10)) * time.Second)
		}
		apply(t, a, Plan{})
		if len(m.rules.Untracked) != 0 || len(m.tables) != 0 || len(m.daemons) != 0 || !maps.Equal(m.numbers, before) || !slices.Equal(m.addrs, addrs) {
			t.Errorf("seed %d: left over: tables %v, daemons %v, sysctls %v, addresses %v", seed, m.tables, m.daemons, m.numbers, m.addrs)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "sysctls")); err != nil || len(text) != 0 {
			t.Errorf("seed %d: left over: %q, %v", seed, text, err)
		}
		if changes < 1000 {
			t.Errorf("seed %d: %d changes are no flapping", seed, changes)
		}
	}
}

// consistent is what must hold after every step.
func consistent(t *testing.T, m *model, p Plan) {
	t.Helper()
	if (m.numbers[BackupOnly] == 0) != p.Directs {
		t.Fatalf("%s is %d, directs is %v", BackupOnly, m.numbers[BackupOnly], p.Directs)
	}
	hidden := slices.ContainsFunc(m.addrs, func(a link.Addr) bool { return a.Link == 1 && a.Protocol == link.Protocol })
	if !hidden || m.numbers["ipv4/conf/all/arp_ignore"] != 1 || m.numbers["ipv4/conf/all/arp_announce"] != 2 {
		t.Fatalf("hidden %v, sysctls %v", hidden, m.numbers)
	}
}

func FuzzSaved(f *testing.F) {
	f.Add([]byte("boot ipv4/vs/backup_only 1\nother x 2\nboot broken\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &saved{path: filepath.Join(t.TempDir(), "s"), boot: "boot", values: parseSaved(b, "boot")}
		if err := s.write(); err != nil {
			t.Fatal(err)
		}
		again, err := openSaved(s.path, "boot")
		if err != nil || !maps.Equal(again.values, s.values) {
			t.Errorf("%v is read back as %v, %v", s.values, again.values, err)
		}
	})
}

func TestOnlyAnAddressThatStandsSilentOnLoopbackIsKept(t *testing.T) {
	m, s := newModel(), frontends(t)
	p, a := NewPlanner(s), newApplier(t, m, t.TempDir())
	plan, _ := p.Plan(epoch)
	apply(t, a, plan)
	service := &Service{}
	if service.keep(a.kept); !service.Keeps(netip.MustParseAddr("10.1.0.100")) || service.Keeps(netip.MustParseAddr("10.1.0.101")) {
		t.Errorf("kept are %v; f1 is a real server of the first address alone", a.kept)
	}
	m.numbers["ipv4/conf/eth0/arp_ignore"] = 8
	if _, err := a.apply(plan); err == nil || len(a.kept) != 0 {
		t.Errorf("ARP is not silent, and kept are %v; error %v", a.kept, err)
	}
	m.numbers["ipv4/conf/eth0/arp_ignore"] = 0
	if apply(t, a, plan); len(a.kept) != 1 {
		t.Errorf("again: kept are %v", a.kept)
	}
	if apply(t, a, Plan{}); len(a.kept) != 0 {
		t.Errorf("withdrawn: kept are %v", a.kept)
	}
}

package ipvs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/runfile"
)

// model is a kernel as it should be, or one that lies.
type model struct {
	services map[Key]Service
	daemons  map[Role]Daemon
	writes   int
	forget   Kind           // accept such a change and don't do it
	refuse   map[Key]bool   // refuse all changes of these
	before   func(c Change) // a look at the world before a change
}

func newModel() *model { return &model{services: map[Key]Service{}, daemons: map[Role]Daemon{}} }

func (m *model) List() ([]Observed, error) {
	var all []Observed
	for _, s := range m.services {
		all = append(all, Observed{Service: s.normal()})
	}
	return all, nil
}

func (m *model) Get(k Key) (Observed, bool, error) {
	s, ok := m.services[k]
	return Observed{Service: s.normal()}, ok, nil
}

func (m *model) Count(o *Observed) error {
	o.Loads = make([]Load, len(o.Servers))
	return nil
}

func (m *model) Apply(c Change) error {
	m.writes++
	if m.before != nil {
		m.before(c)
	}
	k := c.Service.Key
	if m.refuse[k] {
		return fmt.Errorf("%v: refused", c)
	}
	if c.Kind == m.forget {
		return nil
	}
	s, there := m.services[k]
	at := slices.IndexFunc(s.Servers, func(r Server) bool { return r.Addr == c.Server.Addr })
	if there == (c.Kind == AddService) || c.Kind == AddServer && at >= 0 || (c.Kind == EditServer || c.Kind == RemoveServer) && at < 0 {
		return fmt.Errorf("%v: it is not so", c)
	}
	s.Servers = slices.Clone(s.Servers)
	switch c.Kind {
	case AddService, EditService:
		servers := s.Servers
		s = c.Service
		s.Servers = servers
	case RemoveService:
		delete(m.services, k)
		return nil
	case AddServer:
		s.Servers = append(s.Servers, c.Server)
	case EditServer:
		s.Servers[at] = c.Server
	case RemoveServer:
		s.Servers = slices.Delete(s.Servers, at, at+1)
	}
	m.services[k] = s
	return nil
}

func (m *model) Daemons() (all []Daemon, err error) {
	for _, d := range m.daemons {
		all = append(all, d)
	}
	return all, nil
}

func (m *model) StartDaemon(d Daemon) error {
	if _, ok := m.daemons[d.Role]; ok || d.Interface == "nowhere0" {
		return errors.New("file exists")
	}
	m.writes++
	m.daemons[d.Role] = d
	return nil
}

func (m *model) StopDaemon(r Role) error {
	m.writes++
	delete(m.daemons, r)
	return nil
}

const journalFile = "ipvs"

func journalIn(dir string, at runfile.Origin) runfile.File {
	return runfile.File{Path: filepath.Join(dir, journalFile), At: at}
}

func owner(t *testing.T, m *model, dir string) *Owner {
	t.Helper()
	j, broken, err := openJournal(journalIn(dir, runfile.Origin{Boot: "boot", NetNS: 1}))
	if err != nil || broken != 0 {
		t.Fatalf("journal: %d broken lines, %v", broken, err)
	}
	return &Owner{kernel: m, journal: j}
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func servers(addrs ...string) (all []Server) {
	for _, a := range addrs {
		all = append(all, Server{Addr: at(a), Method: Route, Weight: 1})
	}
	return all
}

func ssh(addrs ...string) Service {
	return Service{Key: ByAddr(TCP, at("10.1.0.100:22")), Scheduler: "wlc", Persistence: 10 * time.Minute, Servers: servers(addrs...)}
}

func set(t *testing.T, o *Owner, desired ...Service) []Change {
	t.Helper()
	made, err := o.Set(desired)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestASecondSetSendsNothing(t *testing.T) {
	m := newModel()
	o := owner(t, m, t.TempDir())
	desired := []Service{ssh("10.1.0.2:22", "10.1.0.1:22"), {Key: ByMark(7, true), Scheduler: "rr", Servers: servers("[fd00::1]:0")}}
	if made := set(t, o, desired...); len(made) != 5 {
		t.Errorf("made %v; two services and three servers are right", made)
	}
	m.writes = 0
	if made := set(t, o, desired...); m.writes != 0 || len(made) != 0 {
		t.Errorf("the second time %d messages: %v", m.writes, made)
	}
}

func TestOneChangeIsOneMessage(t *testing.T) {
	m := newModel()
	o := owner(t, m, t.TempDir())
	s := ssh("10.1.0.1:22", "10.1.0.2:22", "10.1.0.3:22")
	set(t, o, s)
	for name, change := range map[string]func(*Service){
		"weight":      func(s *Service) { s.Servers[1].Weight = 0 },
		"server gone": func(s *Service) { s.Servers = s.Servers[:2] },
		"scheduler":   func(s *Service) { s.Scheduler = "mh" },
		"threshold":   func(s *Service) { s.Servers[0].Upper = 100 },
		"persistence": func(s *Service) { s.Persistence = 0 },
		"granularity": func(s *Service) { s.Granularity = 24 },
	} {
		m.writes = 0
		s.Servers = slices.Clone(s.Servers)
		change(&s)
		if made := set(t, o, s); m.writes != 1 {
			t.Errorf("%s: %d messages: %v", name, m.writes, made)
		}
	}
}

func TestWhatOthersMadeStaysAsItIs(t *testing.T) {
	m := newModel()
	foreign := Service{Key: ByAddr(TCP, at("10.1.0.100:80")), Scheduler: "rr", Servers: servers("10.9.0.9:80")}
	m.services[foreign.Key] = foreign
	o := owner(t, m, t.TempDir())
	set(t, o, ssh("10.1.0.1:22"))
	wanted := foreign
	wanted.Scheduler = "wlc"
	if made, err := o.Set([]Service{wanted, ssh("10.1.0.2:22")}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "10.1.0.100:80") {
		t.Errorf("took what another has made: %v, %v", made, err)
	}
	if got := m.services[foreign.Key]; got.Scheduler != "rr" || len(got.Servers) != 1 {
		t.Errorf("the other's service is now %+v", got)
	}
	if got := m.services[ssh().Key].Servers; len(got) != 1 || got[0].Addr != at("10.1.0.2:22") {
		t.Errorf("what is ours was not set beside it: %+v", got)
	}
	set(t, o)
	if len(m.services) != 1 {
		t.Errorf("after nothing is desired, there is %v; the other's is right", m.services)
	}
}

func TestASuccessorAdoptsAndRemovesWhatItsPredecessorMade(t *testing.T) {
	m := newModel()
	dir := t.TempDir()
	set(t, owner(t, m, dir), ssh("10.1.0.1:22"), Service{Key: ByMark(3, false), Scheduler: "rr"})
	m.writes = 0
	made := set(t, owner(t, m, dir), ssh("10.1.0.1:22"))
	if len(made) != 1 || made[0].Kind != RemoveService || made[0].Service.Mark != 3 {
		t.Errorf("a successor made %v; removing the mark alone is right", made)
	}
	// Another namespace's journal speaks of other tables.
	j, _, err := openJournal(journalIn(dir, runfile.Origin{Boot: "boot", NetNS: 2}))
	if err != nil || len(j.keys) != 0 {
		t.Errorf("adopted from another namespace: %v, %v", j.keys, err)
	}
}

func TestAServiceIsInTheJournalBeforeItIsMade(t *testing.T) {
	m := newModel()
	dir := t.TempDir()
	o := owner(t, m, dir)
	m.before = func(c Change) {
		text, err := os.ReadFile(filepath.Join(dir, journalFile))
		if err != nil || !strings.Contains(string(text), "tcp 10.1.0.100:22") {
			t.Errorf("%v, and the journal says %q, %v", c, text, err)
		}
	}
	set(t, o, ssh("10.1.0.1:22"))
	set(t, o) // nor is it out of it before it is gone
	if text, _ := os.ReadFile(filepath.Join(dir, journalFile)); len(text) != 0 {
		t.Errorf("the journal of nothing is %q", text)
	}
}

func TestNothingIsMadeThatCanNotBeWrittenDown(t *testing.T) {
	m := newModel()
	dir := filepath.Join(t.TempDir(), "gone")
	if _, err := owner(t, m, dir).Set([]Service{ssh("10.1.0.1:22")}); err == nil || m.writes != 0 {
		t.Errorf("%d messages, %v", m.writes, err)
	}
}

func TestAKernelThatForgetsIsFoundOut(t *testing.T) {
	for _, kind := range []Kind{AddService, AddServer} {
		m := newModel()
		m.forget = kind
		if _, err := owner(t, m, t.TempDir()).Set([]Service{ssh("10.1.0.1:22")}); err == nil {
			t.Errorf("a kernel that forgets changes of the kind %d is believed", kind)
		}
	}
}

func TestARefusedServiceDoesNotKeepTheOthersFromBeingSet(t *testing.T) {
	m := newModel()
	bad := Service{Key: ByMark(1, false), Scheduler: "none", Servers: servers("10.1.0.1:0")}
	m.refuse = map[Key]bool{bad.Key: true}
	o := owner(t, m, t.TempDir())
	_, err := o.Set([]Service{bad, ssh("10.1.0.1:22")})
	if err == nil || strings.Count(err.Error(), "refused") != 1 {
		t.Errorf("one refusal is told as %v", err)
	}
	if len(m.services[ssh().Key].Servers) != 1 {
		t.Errorf("the other service is %+v", m.services)
	}
	m.refuse = nil
	set(t, o, bad, ssh("10.1.0.1:22"))
}

func TestWhatCanNotBeIsRefusedBeforeAnythingIsChanged(t *testing.T) {
	change := func(f func(*Service)) Service {
		s := ssh("10.1.0.1:22")
		f(&s)
		return s
	}
	for _, tc := range []struct {
		name, want string
		service    Service
	}{
		{"family", "other family", ssh("[fd00::1]:22")},
		{"twice", "twice", ssh("10.1.0.1:22", "10.1.0.1:22")},
		{"weight", "0 to 65535", change(func(s *Service) { s.Servers[0].Weight = 65536 })},
		{"seconds", "whole seconds", change(func(s *Service) { s.Persistence = time.Millisecond })},
		{"granularity", "1 to 32", change(func(s *Service) { s.Granularity = 33 })},
		{"scheduler", "scheduler", change(func(s *Service) { s.Scheduler = "" })},
		{"protocol", "tcp or udp", Service{Key: ByAddr(1, at("10.1.0.1:0")), Scheduler: "rr"}},
		{"mapped", "no address", Service{Key: ByAddr(TCP, at("[::ffff:10.1.0.1]:22")), Scheduler: "rr"}},
		{"both", "not both", Service{Key: Key{Mark: 1, Protocol: TCP}, Scheduler: "rr"}},
		{"flags", "known", change(func(s *Service) { s.Flags = 0x100 })},
	} {
		m := newModel()
		if _, err := owner(t, m, t.TempDir()).Set([]Service{tc.service}); err == nil || !strings.Contains(err.Error(), tc.want) || m.writes != 0 {
			t.Errorf("%s: %d messages and %v; want %q", tc.name, m.writes, err, tc.want)
		}
	}
}

func TestDaemonsAreReplacedOnlyWhenTheyDifferAndOursAlone(t *testing.T) {
	m := newModel()
	dir := t.TempDir()
	o := owner(t, m, dir)
	master, backup := Daemon{Master, "eth0", 5}, Daemon{Backup, "eth0", 5}
	do := func(want int, d ...Daemon) {
		t.Helper()
		m.writes = 0
		if changed, err := o.SetDaemons(d); err != nil || m.writes != want || changed != (want > 0) {
			t.Fatalf("%v: %d messages, changed %v, %v; %d are right", d, m.writes, changed, err, want)
		}
	}
	do(2, master, backup)
	do(0, backup, master)
	o = owner(t, m, dir) // a successor
	do(2, Daemon{Master, "eth1", 5}, backup)
	do(2)
	if len(m.daemons) != 0 {
		t.Fatalf("left %v", m.daemons)
	}
	m.daemons[Master] = Daemon{Master, "eth7", 1}
	do(0)
	if _, err := o.SetDaemons([]Daemon{master}); !errors.Is(err, ErrForeign) || m.daemons[Master].Interface != "eth7" {
		t.Errorf("another's daemon: %v, now %v", err, m.daemons)
	}
}

// From any tables to any others: the changes lead there, none is in vain, and
// on the way no service that has a server before and after is without one.
func TestDiffLeadsFromAnyTableToAnyOther(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		have, want := randomTable(r), randomTable(r)
		m := newModel()
		for _, s := range have {
			m.services[s.Key] = s
		}
		for _, c := range Diff(have, want) {
			if err := m.Apply(c); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for _, s := range want {
				was := slices.IndexFunc(have, func(h Service) bool { return h.Key == s.Key && len(h.Servers) > 0 })
				if was >= 0 && len(s.Servers) > 0 && len(m.services[s.Key].Servers) == 0 {
					t.Fatalf("seed %d: after %v, %v has no server", seed, c, s.Key)
				}
			}
		}
		var now []Service
		for _, s := range m.services {
			now = append(now, s)
		}
		if len(now) != len(want) {
			t.Fatalf("seed %d: %d services; want %d", seed, len(now), len(want))
		}
		if left := Diff(now, want); len(left) != 0 {
			t.Fatalf("seed %d: still to do: %v", seed, left)
		}
	}
}

func randomTable(r *rand.Rand) (table []Service) {
	for i := range 4 {
		if r.IntN(3) == 0 {
			continue
		}
		s := Service{Key: ByMark(uint32(i+1), false), Scheduler: []string{"rr", "wlc"}[r.IntN(2)], Persistence: time.Duration(r.IntN(2)) * time.Minute}
		for j := range 4 {
			if r.IntN(2) == 0 {
				s.Servers = append(s.Servers, Server{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(j)}), 22), Weight: r.IntN(2)})
			}
		}
		r.Shuffle(len(s.Servers), func(a, b int) { s.Servers[a], s.Servers[b] = s.Servers[b], s.Servers[a] })
		table = append(table, s)
	}
	return table
}

func TestADaemonThatCouldNotBeStartedIsNotOurs(t *testing.T) {
	m := newModel()
	o := owner(t, m, t.TempDir())
	if _, err := o.SetDaemons([]Daemon{{Master, "nowhere0", 1}}); err == nil {
		t.Fatal("a daemon on no interface was started")
	}
	m.daemons[Master] = Daemon{Master, "eth7", 1} // another starts one
	if changed, err := o.SetDaemons(nil); err != nil || changed || len(m.daemons) != 1 {
		t.Errorf("another's daemon was stopped: %v, %v", changed, err)
	}
}

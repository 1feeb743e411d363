package lb

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/state"
)

// applying is a leader that is always there.
type applying struct {
	*state.Store
	index uint64
}

func (a *applying) Propose(_ context.Context, c state.Command) (uint64, error) {
	a.index++
	return a.index, a.Apply(a.index, c)
}

// director is a service of frontends() that shares a store, and follows it.
func director(t *testing.T, store *applying, node string) *Service {
	t.Helper()
	settings := frontends(t)
	settings.Node = node
	s, err := New(Config{RunDir: t.TempDir(), Settings: settings}, Deps{
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Store: store, Proposer: store,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// weights are those of the first service by address.
func weights(s *Service) (all []string) {
	for _, v := range s.Plan().Tables {
		if v.Addr.Port() != 22 {
			continue
		}
		for _, r := range v.Servers {
			all = append(all, r.Addr.Addr().String()+"="+map[bool]string{true: "0", false: "some"}[r.Weight == 0])
		}
	}
	return all
}

func TestADrainIsKnownToAllDirectorsAndSurvivesThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &applying{Store: state.New()}
		ctx, cancel := context.WithCancel(t.Context())
		one, two := director(t, store, "f1"), director(t, store, "f2")
		go one.follow(ctx)
		go two.follow(ctx)
		if err := one.StartDrain(ctx, "f3", Drain{Since: time.Now()}, false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		want := []string{"10.1.0.1=some", "10.1.0.2=some", "10.1.0.3=0"}
		successor := director(t, store, "f1")
		go successor.follow(ctx)
		synctest.Wait()
		for name, s := range map[string]*Service{"who ordered it": one, "another": two, "who started later": successor} {
			if got := weights(s); !slices.Equal(got, want) {
				t.Errorf("%s has %v, want %v", name, got, want)
			}
		}
		if err := two.EndDrain(ctx, "f3"); err != nil {
			t.Fatal(err)
		}
		if err := two.EndDrain(ctx, "f3"); err != nil {
			t.Errorf("the second time: %v", err)
		}
		synctest.Wait()
		if got := weights(one); got[2] != "10.1.0.3=some" {
			t.Errorf("undrained: %v", got)
		}
		cancel()
		synctest.Wait()
	})
}

func TestGossipKeepsTheLastServersOfADirectorThatIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &applying{Store: state.New()}
		ctx, cancel := context.WithCancel(t.Context())
		s := director(t, store, "f1")
		s.settings.Services[0].Sorry = netip.Addr{}
		s.planner.Reconfigure(s.settings)
		go s.follow(ctx)
		store.SetMembers([]state.Member{{Name: "f2", Liveness: state.Alive}, {Name: "f3", Liveness: state.Failed}})
		synctest.Wait()
		for _, node := range []string{"f3", "f1", "f2"} {
			s.Plan() // what was up is remembered
			s.tell(func(p *Planner) { p.Check("ssh", node, false, time.Now()) })
		}
		plan := s.Plan()
		said := ""
		for _, r := range plan.Remarks {
			said += r.Text
		}
		if got := weights(s); !slices.Contains(got, "10.1.0.2=some") || !strings.Contains(said, "gossip sees [f2] alive") {
			t.Errorf("all checks fail: %v, said %q; f2, which gossip sees, must stay", got, said)
		}
		store.SetMembers([]state.Member{{Name: "f2", Liveness: state.Failed}})
		synctest.Wait()
		if got := weights(s); slices.Contains(got, "10.1.0.2=some") {
			t.Errorf("gossip sees it dead, too, and it stays: %v", got)
		}
		cancel()
		synctest.Wait()
	})
}

func TestADrainThatWouldLeaveTooLittleIsRefused(t *testing.T) {
	store := &applying{Store: state.New()}
	s := director(t, store, "f1")
	s.settings.Services[0].Quorum = 2
	order := Drain{Since: time.Now()}
	for _, step := range []struct {
		node  string
		force bool
		want  error
	}{{"f9", true, ErrUnknown}, {"f2", false, nil}, {"f3", false, ErrRefused}, {"f3", true, nil}} {
		if err := s.StartDrain(t.Context(), step.node, order, step.force); !errors.Is(err, step.want) || err != nil && step.want == nil {
			t.Errorf("%s, forced %v: %v, want %v", step.node, step.force, err, step.want)
		}
	}
	order.Message = "a\x1b[2Jb"
	if err := s.StartDrain(t.Context(), "f2", order, true); !errors.Is(err, ErrRefused) {
		t.Errorf("a message that clears screens: %v", err)
	}
	s.deps.Store = nil
	if err := s.StartDrain(t.Context(), "f2", Drain{}, true); !errors.Is(err, ErrNoStore) {
		t.Errorf("without a store: %v", err)
	}
}

func TestANodeIsEmptyOnlyWhenItSaysSo(t *testing.T) {
	since := time.Unix(1000, 0)
	st := Status{Drains: map[string]Drain{"f3": {Since: since}}, People: map[string]People{}, Left: map[string]float64{}}
	for _, step := range []struct {
		node   string
		change func()
		want   string
	}{
		{"f1", func() {}, "f1 is not drained"},
		{"f3", func() {}, "f3 has not told yet who is logged in"},
		{"f3", func() { st.People["f3"] = People{At: since.Add(-time.Second)} }, "f3 has not told yet who is logged in"},
		{"f3", func() { st.People["f3"] = People{At: since.Add(time.Second), Logins: make([]Login, 2)} }, "2 logins on f3"},
		{"f3", func() { st.People["f3"] = People{At: since.Add(time.Minute)}; st.Left["f3"] = 1 }, "1 connections to f3"},
		{"f3", func() { st.Left["f3"] = 0 }, "empty, safe to reboot"},
	} {
		step.change()
		if empty, why := st.Empty(step.node); why != step.want || empty != strings.HasPrefix(why, "empty") {
			t.Errorf("empty %v: %q, want %q", empty, why, step.want)
		}
	}
}

func TestPeopleAreToldAtTheStartAndBeforeTheEnd(t *testing.T) {
	d := Drain{Since: time.Unix(0, 0), Deadline: time.Unix(7200, 0), Message: "new kernel"}
	var told []int
	last := time.Time{}
	for second := 0; second <= 7200; second += 10 {
		now := time.Unix(int64(second), 0)
		if d.due(last, now) {
			told, last = append(told, second), now
		}
	}
	if want := []int{0, 3600, 6300, 6900, 7140}; !slices.Equal(told, want) {
		t.Errorf("told at %v, want %v", told, want)
	}
	if text := d.words("f3", time.Unix(3600, 0)); !strings.Contains(text, "1h0m0s") || !strings.Contains(text, "new kernel") || !strings.Contains(text, "f3") {
		t.Errorf("told %q", text)
	}
}

func TestWhatIsLeftIsEstimatedByTheRateSoFar(t *testing.T) {
	since := time.Unix(0, 0)
	for _, c := range []struct {
		first, left int
		want        time.Duration
		known       bool
	}{{10, 10, 0, false}, {10, 5, time.Hour, true}, {10, 2, 15 * time.Minute, true}, {10, 0, 0, true}, {0, 0, 0, true}} {
		p := People{At: since.Add(time.Hour), First: c.first, Logins: make([]Login, c.left)}
		if left, known := p.Left(since); left != c.want || known != c.known {
			t.Errorf("%d of %d left after an hour: %v, %v; want %v, %v", c.left, c.first, left, known, c.want, c.known)
		}
	}
}

// utmp is an entry of a file.
func utmp(kind uint16, pid uint32, line, user string) []byte {
	e := make([]byte, utmpSize)
	binary.LittleEndian.PutUint16(e, kind)
	binary.LittleEndian.PutUint32(e[4:], pid)
	copy(e[8:40], line)
	copy(e[44:76], user)
	copy(e[76:332], "10.3.0.7")
	binary.LittleEndian.PutUint32(e[340:], 1000)
	return e
}

func TestOnlyLoginsOnTerminalsAreReadFromUtmp(t *testing.T) {
	file := slices.Concat(utmp(2, 1, "~", "reboot"), utmp(7, 20, "pts/0", "ada"), utmp(7, 21, "../etc/passwd", "eve"), utmp(7, 22, "pts/../../x", "eve"),
		utmp(8, 23, "pts/1", ""), utmp(7, 24, "tty1", "bob"), []byte("cut short"))
	var got []string
	for _, l := range parseUtmp(file) {
		got = append(got, l.User+" "+l.TTY+" "+l.From+" "+l.At.UTC().Format(time.TimeOnly))
	}
	if want := []string{"ada pts/0 10.3.0.7 00:16:40", "bob tty1 10.3.0.7 00:16:40"}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}

// Whatever stands in utmp, a terminal is one below /dev.
func FuzzUtmp(f *testing.F) {
	f.Add(utmp(7, 20, "pts/0", "ada"))
	f.Add(utmp(7, 20, "../x", "eve"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, l := range parseUtmp(b) {
			if strings.Contains(l.TTY, "..") || strings.HasPrefix(l.TTY, "/") || l.User == "" || l.pid <= 0 {
				t.Errorf("read %+v", l)
			}
		}
	})
}

const connections = `Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A01009A 8A3E 0A010064 0016 0A010001 0016 ESTABLISHED     899
TCP 0A01009A 0000 0A010064 0016 0A010001 0016 NONE            600
TCP fd00:0000:0000:0000:0000:0000:0000:0009 8A3E fd00:0000:0000:0000:0000:0000:0000:0100 0016 fd00:0000:0000:0000:0000:0000:0000:0001 0016 FIN_WAIT          10
broken
`

func TestTheKernelsConnectionsAreRead(t *testing.T) {
	var got []string
	for _, s := range parseSessions([]byte(connections)) {
		got = append(got, strings.Join([]string{s.Client.String(), s.Virtual.String(), s.Server.String(), s.State, s.Expires.String(), map[bool]string{true: "template"}[s.Template()]}, " "))
	}
	want := []string{
		"10.1.0.154:0 10.1.0.100:22 10.1.0.1:22 NONE 10m0s template",
		"10.1.0.154:35390 10.1.0.100:22 10.1.0.1:22 ESTABLISHED 14m59s ",
		"[fd00::9]:35390 [fd00::100]:22 [fd00::1]:22 FIN_WAIT 10s ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("read\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Whatever stands in the kernel's list, what is read of it has addresses.
func FuzzSessions(f *testing.F) {
	f.Add([]byte(connections))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, s := range parseSessions(b) {
			if !s.Client.IsValid() || !s.Virtual.IsValid() || !s.Server.IsValid() || s.Expires < 0 {
				t.Errorf("read %+v", s)
			}
		}
	})
}

func TestExplainTellsWhereAClientIsAtHome(t *testing.T) {
	v := VirtualService{Name: "ssh", Addr: netip.MustParseAddr("10.1.0.100"), Port: 22, Granularity: 24}
	st := ServiceStatus{Name: "ssh", Scheduler: "wlc", Servers: []ServerStatus{{Node: "f1", Up: true, Weight: 1}, {Node: "f2", Up: false}, {Node: "f3", Up: true, Drained: true}}}
	sessions := parseSessions([]byte(connections))
	for i := range sessions {
		sessions[i].Node = "f1"
	}
	story := strings.Join(st.explain(v, netip.MustParseAddr("10.1.0.7"), sessions), "\n")
	want := "ssh: 10.1.0.0/24 is at home on f1 for 10m0s more after the last connection\n" +
		"ssh: a new client goes to one of f1 (weight 1), by wlc; not to f2 (its check fails), f3 (drained)"
	if story != want {
		t.Errorf("told\n%s\nwant\n%s", story, want)
	}
}

func TestTheAdminTreeAnswers(t *testing.T) {
	store := &applying{Store: state.New()}
	s := director(t, store, "f1")
	for _, c := range []struct {
		method, path string
		status       int
		has          string
	}{
		{"GET", "status", 200, `"name":"ssh"`},
		{"GET", "sessions", 200, ""},
		{"GET", "explain/10.1.0.9", 200, "does not direct"},
		{"GET", "explain/nobody", 400, "is no address"},
		{"GET", "firewall?for=nftables", 200, "10.1.0.100 tcp dport 22 notrack"},
		{"GET", "firewall?for=iptables", 200, "--notrack"},
		{"GET", "firewall?for=nftables", 200, "224.0.0.81 udp dport 8848 accept"},
		{"GET", "firewall?for=iptables", 200, "-d 224.0.0.81 -p udp --dport 8848 -j ACCEPT"},
		{"GET", "firewall?for=ipfw", 400, "nftables"},
		{"POST", "drain/f3?deadline=2h&message=hello", 200, `"message":"hello"`},
		{"POST", "drain/f3?deadline=soon", 400, "soon"},
		{"POST", "drain/nobody", 404, "nobody"},
		{"POST", "undrain/f3", 200, "null"},
		{"GET", "drain/f3", 405, ""},
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, AdminPath+c.path, http.NoBody))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.has) {
			t.Errorf("%s %s: %d %s; want %d with %q", c.method, c.path, w.Code, w.Body, c.status, c.has)
		}
		if c.status == 200 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s: no JSON: %s", c.method, c.path, w.Body)
		}
	}
}

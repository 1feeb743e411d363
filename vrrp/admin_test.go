package vrrp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeRouters is one router, dns1, of fbservice1, which does at once what it
// is told.
type fakeRouters struct {
	mu      sync.Mutex
	report  RouterReport
	changes []Change
	guard   GuardReport
	told    []string
	deaf    bool // orders have no effect
}

var fb2 = netip.MustParseAddr("10.1.0.2")

func newFake(state State, at time.Time) *fakeRouters {
	vip := netip.MustParseAddr("10.1.0.101")
	own := netip.MustParseAddr("10.1.0.1")
	f := &fakeRouters{guard: GuardReport{PID: 7}}
	f.report = RouterReport{
		Settings: RouterSettings{
			Router: Router{
				Name: "dns1", VRID: 161, Version: 3, Priority: 254, Interval: 10 * time.Millisecond, Source: own,
				Advertised: []netip.Addr{vip}, Preempt: true,
			},
			Network: "administration", Nodes: map[netip.Addr]string{fb2: "fbservice2"}, Order: []string{"fbservice1", "fbservice2"},
		},
		Status: Status{
			State: state, Since: at.Add(-time.Minute), Reason: "the first in the order", Priority: 254, Interval: 10 * time.Millisecond,
			Tracks: []TrackStatus{{Track: Track{Name: "service dns"}, Known: true, Up: true, Since: at.Add(-2 * time.Minute)}},
			Peers:  []PeerStatus{{Address: fb2, At: at.Add(-3 * time.Second), Advert: Advert{Version: 3, Priority: 251, Interval: time.Second}}},
		},
		Link:    LinkReport{Index: 2, Name: "bradm", MAC: "aa:bb:cc:dd:ee:00", Up: true},
		Held:    []AddressReport{{Prefix: netip.PrefixFrom(vip, 32), Wanted: state == Active, Present: state == Active}},
		History: []Transition{{At: at.Add(-time.Minute), From: Backup, To: state, Reason: "the first in the order"}},
		Stats:   Stats{Sent: 60, Received: 4, LastSent: at, LastSeen: at.Add(-10 * time.Millisecond)},
	}
	f.set(state)
	return f
}

func (f *fakeRouters) set(state State) {
	f.report.Status.State = state
	f.report.Status.Active = fb2
	if state == Active {
		f.report.Status.Active = f.report.Settings.Source
	}
}

func (f *fakeRouters) Status(context.Context) ([]RouterReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []RouterReport{f.report}, nil
}

func (f *fakeRouters) tell(what, router string, state State) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, what+" "+router)
	if !f.deaf {
		f.set(state)
	}
	return nil
}

func (f *fakeRouters) Yield(_ context.Context, router string) error {
	return f.tell("yield", router, Backup)
}
func (f *fakeRouters) Pull(_ context.Context, router string) error {
	return f.tell("pull", router, Active)
}
func (f *fakeRouters) Release(_ context.Context, router string) error {
	return f.tell("release", router, f.report.Status.State)
}
func (f *fakeRouters) Plan(context.Context) ([]Change, error) { return f.changes, nil }
func (f *fakeRouters) Guard() GuardReport                     { return f.guard }

// request asks the tree and decodes a 200 into found, unless found is nil.
func request(t *testing.T, handler http.Handler, method, path string, found any) (status int, text string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), method, AdminPath+path, nil))
	body, _ := io.ReadAll(recorder.Result().Body)
	if found != nil && recorder.Code == http.StatusOK {
		if err := json.Unmarshal(body, found); err != nil {
			t.Fatalf("%s: %v in %s", path, err, body)
		}
	}
	return recorder.Code, strings.TrimSpace(string(body))
}

func TestShowTellsWhatTheRouterKnows(t *testing.T) {
	now := time.Now()
	admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: newFake(Backup, now)})
	var views []View
	if status, text := request(t, admin, "GET", "list", &views); status != 200 || len(views) != 1 {
		t.Fatalf("%d %s", status, text)
	}
	var v View
	request(t, admin, "GET", "show/dns1", &v)
	if v.State != "backup" || v.Holder != "fbservice2" || v.VRID != 161 || v.Peers[0].Node != "fbservice2" || time.Duration(v.Peers[0].Interval) != time.Second ||
		v.Tracks[0].State != "up" || v.History[0].To != "backup" || !v.Addresses[0].Advertised || v.Addresses[0].Present {
		t.Errorf("%+v", v)
	}
	for _, path := range []string{"show/nothing", "explain/nothing", "probe/nothing"} {
		if status, text := request(t, admin, "GET", path, nil); status != http.StatusNotFound || !strings.Contains(text, "nothing") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	for _, path := range []string{"move/nothing", "hold/nothing", "release/nothing"} {
		if status, _ := request(t, admin, "POST", path, nil); status != http.StatusNotFound {
			t.Errorf("%s: %d", path, status)
		}
	}
	if status, _ := request(t, admin, "GET", "hold/dns1", nil); status != http.StatusMethodNotAllowed {
		t.Errorf("an order by GET: %d", status)
	}
}

func TestMoveTellsWhatCameOfIt(t *testing.T) {
	var moved Moved
	fake := newFake(Active, time.Now())
	admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake})
	if status, text := request(t, admin, "POST", "move/dns1", &moved); status != 200 || !moved.Done || moved.Holder != "fbservice2" || moved.From != "fbservice1" {
		t.Errorf("%d %s", status, text)
	}
	if status, text := request(t, admin, "POST", "move/dns1", nil); status != http.StatusConflict || !strings.Contains(text, "fbservice2 does") {
		t.Errorf("a node that does not hold it moved it: %d %s", status, text)
	}
	if status, text := request(t, admin, "POST", "move/dns1?to=fbservice1", &moved); status != 200 || !moved.Done || moved.Holder != "fbservice1" {
		t.Errorf("%d %s", status, text)
	}
	if status, text := request(t, admin, "POST", "move/dns1?to=fbservice9", nil); status != http.StatusConflict || !strings.Contains(text, "no member") {
		t.Errorf("%d %s", status, text)
	}
	if status, text := request(t, admin, "POST", "move/dns1?to=fbservice2", nil); status != http.StatusConflict || !strings.Contains(text, "ssh fbservice2 holdfast vip hold dns1") {
		t.Errorf("%d %s", status, text)
	}
	fake.deaf = true
	if status, text := request(t, admin, "POST", "move/dns1", &moved); status != 200 || moved.Done || !strings.Contains(moved.Text, "nobody took it") {
		t.Errorf("%d %s", status, text)
	}
	if got := strings.Join(fake.told, ", "); got != "yield dns1, pull dns1, yield dns1" {
		t.Errorf("told %s", got)
	}
	fake.set(Fault)
	if status, _ := request(t, admin, "POST", "hold/dns1", nil); status != http.StatusConflict {
		t.Errorf("a router in fault was told to hold: %d", status)
	}
}

// lateRouters are ones whose process does not run for a while after an order, in
// which another node does as it was told. No context wakes such a process.
type lateRouters struct {
	*fakeRouters
	stands time.Duration // once, after the next order
	late   bool
}

func (l *lateRouters) Yield(_ context.Context, router string) error {
	l.late = true
	return l.fakeRouters.tell("yield", router, Active)
}

func (l *lateRouters) Status(ctx context.Context) ([]RouterReport, error) {
	if l.late {
		l.late = false
		time.Sleep(l.stands)
		l.set(Backup)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return l.fakeRouters.Status(ctx)
}

// TestAMoveThatWasLookedAtTooLateIsDone: it fails if what this node knows when the
// time is over is not asked for, or in a time that was over before.
func TestAMoveThatWasLookedAtTooLateIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		routers := &lateRouters{fakeRouters: newFake(Active, time.Now()), stands: time.Minute}
		var moved Moved
		status, text := request(t, NewAdmin(AdminDeps{Node: "fbservice1", Routers: routers}), "POST", "move/dns1", &moved)
		if status != 200 || !moved.Done || moved.Holder != "fbservice2" {
			t.Errorf("%d %s", status, text)
		}
	})
}

func TestMoveToAnotherNodeAsksThatNode(t *testing.T) {
	fake := newFake(Active, time.Now())
	var asked string
	admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake, Elsewhere: func(_ context.Context, node, router, _ string) (Moved, error) {
		asked = node + " " + router
		return Moved{}, fake.tell("preempted", router, Backup)
	}})
	var moved Moved
	fake.report.Status.Pulled = true
	if status, text := request(t, admin, "POST", "move/dns1?to=fbservice2", &moved); status != 200 || !moved.Done || asked != "fbservice2 dns1" {
		t.Errorf("%d %s, asked %s", status, text, asked)
	}
	if fake.told[0] != "release dns1" {
		t.Errorf("this node still holds on: %q", fake.told)
	}
	admin = NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake, Elsewhere: func(context.Context, string, string, string) (Moved, error) { return Moved{}, errors.New("no route") }})
	if status, text := request(t, admin, "POST", "move/dns1?to=fbservice2", nil); status != 500 || !strings.Contains(text, "no route; type it there: ssh fbservice2") {
		t.Errorf("%d %s", status, text)
	}
}

// TestTheHolderHearsOfAMoveByCommandFirst: wherever it is typed. It fails if the
// address goes before; if nobody is told because it is another node that holds it,
// or held it when another was told; if two are told for one; and if a holder that can't be told stops the move, or
// goes unsaid.
func TestTheHolderHearsOfAMoveByCommandFirst(t *testing.T) {
	deaf := errors.New("no route to host")
	for _, test := range []struct {
		name   string
		order  string
		active bool // this node has it
		failed error
		note   string // what the node that took it says
		want   string // in this order
		said   string // in the note
	}{
		{"on the target", "hold/dns1", false, nil, "", "hear fbservice2 dns1, pull dns1", ""},
		{"on the target", "move/dns1?to=fbservice1", false, nil, "", "hear fbservice2 dns1, pull dns1", ""},
		{"on the target, of a holder that is deaf", "hold/dns1", false, deaf, "", "hear fbservice2 dns1, pull dns1",
			"the holder fbservice2 could not be told before: some log lines may come twice: no route to host"},
		{"on the holder, for the target", "hold/dns1?heard=fbservice2", false, deaf, "", "pull dns1", ""},
		{"on one that held it, for the target", "hold/dns1?heard=fbservice3", false, nil, "", "hear fbservice2 dns1, pull dns1", ""},
		{"on the holder, for the next", "move/dns1", true, deaf, "", "hear fbservice1 dns1, yield dns1",
			"the holder fbservice1 could not be told before"},
		{"on the target, which has it", "hold/dns1", true, nil, "", "pull dns1", ""},
		{"on the holder", "move/dns1?to=fbservice2", true, nil, "", "hear fbservice1 dns1, release dns1, hold fbservice2 dns1", ""},
		{"on the holder, with a relay that is deaf", "move/dns1?to=fbservice2", true, deaf, "", "hear fbservice1 dns1, release dns1, hold fbservice2 dns1",
			"the holder fbservice1 could not be told before"},
		{"on a third node", "move/dns1?to=fbservice2", false, deaf, "the holder fbservice3 could not be told", "hold fbservice2 dns1",
			"the holder fbservice3 could not be told"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fake := newFake(map[bool]State{true: Active, false: Backup}[test.active], time.Now())
			fake.report.Status.Pulled = test.active
			log := func(what string) {
				fake.mu.Lock()
				defer fake.mu.Unlock()
				fake.told = append(fake.told, what)
			}
			admin := NewAdmin(AdminDeps{
				Node: "fbservice1", Routers: fake,
				HearOut: func(_ context.Context, node string, d Departure) error {
					log("hear " + node + " " + d.Router)
					return test.failed
				},
				Elsewhere: func(_ context.Context, node, router, heard string) (Moved, error) {
					if want := map[bool]string{true: "fbservice1"}[test.active]; heard != want {
						t.Errorf("%s hears that %q has been told, want %q", node, heard, want)
					}
					return Moved{Note: test.note}, fake.tell("hold "+node, router, Backup)
				},
			})
			var moved Moved
			status, text := request(t, admin, "POST", test.order, &moved)
			if status != 200 || !moved.Done || (moved.Note == "") != (test.said == "") || !strings.HasPrefix(moved.Note, test.said) {
				t.Errorf("%d %s; want it done, and the note %q", status, text, test.said)
			}
			if got := strings.Join(fake.told, ", "); got != test.want {
				t.Errorf("%s; want %s", got, test.want)
			}
		})
	}
}

func TestExplainTellsTheStory(t *testing.T) {
	now := time.Now()
	fake := newFake(Active, now)
	fake.report.Status.Pulled = true
	fake.report.Status.Peers[0].Disagrees = []Disagreement{{Field: "interval", Ours: "10ms", Theirs: "1s"}}
	fake.report.Held[0].Present = false
	admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake, Now: func() time.Time { return now }})
	var e Explanation
	request(t, admin, "GET", "explain/dns1", &e)
	story := strings.Join(e.Story, "\n")
	for _, words := range []string{
		"fbservice1 holds it, for 1m0s: the first in the order.", "fbservice2 would take over next", "fbservice2 (10.1.0.2) last said 3s ago: priority 251, every 1s.",
		"Tracked: service dns is up for 2m0s (when it is down, the node does not hold).", "interval is 1s there and 10ms here",
		"holdfast vip release dns1", "first to last: fbservice1, fbservice2", "10.1.0.101/32 is not on the interface and should be.",
	} {
		if !strings.Contains(story, words) {
			t.Errorf("the story lacks %q:\n%s", words, story)
		}
	}
	fake.report.Status.Pulled = false
	fake.set(Backup)
	request(t, admin, "GET", "explain/dns1", &e)
	if !strings.HasPrefix(e.Story[0], "fbservice2 holds it, as fbservice1 hears.") {
		t.Errorf("%s", strings.Join(e.Story, "\n"))
	}
}

func TestPlanIsWhatAnOperatorWouldType(t *testing.T) {
	fake := newFake(Active, time.Now())
	prefix := netip.MustParsePrefix("10.1.0.101/32")
	for _, kind := range []ChangeKind{Add, Remove, Ignore, Wait} {
		fake.changes = append(fake.changes, Change{Router: "dns1", Interface: "bradm", Prefix: prefix, Kind: kind, Why: "because"})
	}
	var plan []PlanLine
	request(t, NewAdmin(AdminDeps{Routers: fake}), "GET", "plan", &plan)
	var got []string
	for _, line := range plan {
		got = append(got, line.Command)
	}
	want := "ip address add 10.1.0.101/32 dev bradm proto 0x70; ip address del 10.1.0.101/32 dev bradm; # 10.1.0.101/32 on bradm stays; # 10.1.0.101/32 waits for bradm"
	if strings.Join(got, "; ") != want {
		t.Errorf("%q", got)
	}
}

func TestPlanNamesSettingsOfTheKernelThatAreInTheWay(t *testing.T) {
	kernel := &fakeKernel{sysctls: map[string]string{"net/ipv4/conf/all/arp_ignore": "8\n"}}
	var plan []PlanLine
	request(t, NewAdmin(AdminDeps{Routers: newFake(Active, time.Now()), Kernel: kernel}), "GET", "plan", &plan)
	if len(plan) != 1 || plan[0].Kind != "sysctl" || plan[0].Command != "sysctl -w net.ipv4.conf.all.arp_ignore=0" {
		t.Errorf("%+v", plan)
	}
}

// fakeKernel answers who-has from a table.
type fakeKernel struct {
	answers map[netip.Addr][]net.HardwareAddr
	sysctls map[string]string
	link    KernelLink
}

func (k *fakeKernel) WhoHas(context.Context, string, netip.Addr, []netip.Addr) (map[netip.Addr][]net.HardwareAddr, error) {
	return k.answers, nil
}
func (k *fakeKernel) Link(string) (KernelLink, error) { return k.link, nil }
func (k *fakeKernel) Sysctl(name string) (string, error) {
	if value, ok := k.sysctls[name]; ok {
		return value, nil
	}
	return "", errors.New("absent")
}

func TestProbeNamesWhatIsInTheWay(t *testing.T) {
	vip := netip.MustParseAddr("10.1.0.101")
	mac := func(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }
	tests := map[string]struct {
		state  State
		change func(*fakeRouters, *fakeKernel)
		want   string // of what fails: "what: words"
	}{
		"nothing, active": {Active, func(*fakeRouters, *fakeKernel) {}, ""},
		"nothing, backup": {Backup, func(_ *fakeRouters, k *fakeKernel) {
			k.answers = map[netip.Addr][]net.HardwareAddr{vip: {mac(2)}, fb2: {mac(2)}}
		}, ""},
		"another answers": {Active, func(_ *fakeRouters, k *fakeKernel) { k.answers = map[netip.Addr][]net.HardwareAddr{vip: {mac(9)}} }, "owner: 02:00:00:00:00:09 answers"},
		"nobody answers":  {Backup, func(*fakeRouters, *fakeKernel) {}, "owner: nobody answers"},
		"two answer": {Backup, func(_ *fakeRouters, k *fakeKernel) {
			k.answers = map[netip.Addr][]net.HardwareAddr{vip: {mac(2), mac(3)}}
		}, "owner: 02:00:00:00:00:02 and"},
		"not the one who speaks": {Backup, func(_ *fakeRouters, k *fakeKernel) {
			k.answers = map[netip.Addr][]net.HardwareAddr{vip: {mac(3)}, fb2: {mac(2)}}
		}, "owner: 02:00:00:00:00:03 answers for 10.1.0.101, but fbservice2"},
		"no adverts": {Backup, func(f *fakeRouters, k *fakeKernel) {
			f.report.Stats.Received = 0
			k.answers = map[netip.Addr][]net.HardwareAddr{vip: {mac(2)}}
		}, "adverts: none arrived"},
		"two act": {Active, func(f *fakeRouters, _ *fakeKernel) { f.report.Status.Peers[0].At = time.Now() }, "adverts: fbservice2 (10.1.0.2) advertises as well"},
		"a stranger": {Active, func(f *fakeRouters, _ *fakeKernel) {
			f.report.Status.Peers[0].Address = netip.MustParseAddr("10.1.0.77")
		}, "agreement: 10.1.0.77 advertises VRID 161"},
		"mute":      {Active, func(_ *fakeRouters, k *fakeKernel) { k.sysctls["net/ipv4/conf/bradm/arp_ignore"] = "8\n" }, "sysctl: arp_ignore of bradm is 8"},
		"small MTU": {Active, func(_ *fakeRouters, k *fakeKernel) { k.link.MTU = 30 }, "mtu: an advert has 40 bytes, bradm takes 30"},
		"link down": {Fault, func(f *fakeRouters, _ *fakeKernel) {
			f.report.Link = LinkReport{Name: "bradm", Why: "bradm has no carrier"}
		}, "interface: bradm has no carrier"},
		"no address": {Active, func(f *fakeRouters, _ *fakeKernel) { f.report.Held[0].Present = false }, "address: 10.1.0.101/32 is not on bradm"},
		"disagrees": {Active, func(f *fakeRouters, _ *fakeKernel) {
			f.report.Status.Peers[0].Disagrees = []Disagreement{{Field: "password"}}
		}, "agreement: fbservice2 (10.1.0.2): password differs"},
		"send errors": {Active, func(f *fakeRouters, _ *fakeKernel) {
			f.report.Stats.SendErrors, f.report.Stats.LastSent = 3, time.Now().Add(-time.Hour)
		}, "adverts: 3 could not be sent"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			now := time.Now() // and it stays: who advertised at this moment is never one who did long ago
			fake := newFake(test.state, now)
			kernel := &fakeKernel{link: KernelLink{MTU: 1500}, sysctls: map[string]string{}}
			test.change(fake, kernel)
			admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake, Kernel: kernel, Now: func() time.Time { return now }})
			var findings []Finding
			if status, text := request(t, admin, "GET", "probe/dns1", &findings); status != 200 {
				t.Fatalf("%d %s", status, text)
			}
			var failed []string
			for _, f := range findings {
				if f.Level == Fail {
					failed = append(failed, fmt.Sprintf("%s: %s", f.What, f.Text))
					if f.Remedy == "" {
						t.Errorf("%s: no remedy for %s", f.What, f.Text)
					}
				}
			}
			if test.want == "" && len(failed) > 0 || test.want != "" && (len(failed) != 1 || !strings.HasPrefix(failed[0], test.want)) {
				t.Errorf("fails: %q, want %q", failed, test.want)
			}
		})
	}
}

// What is odd, but in nobody's way, is told as well: how adverts are summed on
// either side, and a bridge that may lose multicast.
func TestProbeWarnsOfChecksumsAndSnooping(t *testing.T) {
	fake := newFake(Active, time.Now())
	fake.report.Status.Peers[0].Advert.Checksum = Plain
	kernel := &fakeKernel{link: KernelLink{MTU: 1500, Snoops: "br0"}, sysctls: map[string]string{}}
	admin := NewAdmin(AdminDeps{Node: "fbservice1", Routers: fake, Kernel: kernel})
	var findings []Finding
	if status, text := request(t, admin, "GET", "probe/dns1", &findings); status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	for what, words := range map[string]string{
		"checksum": "sent with pseudo-header; fbservice2 (10.1.0.2) sends without pseudo-header",
		"snooping": "the bridge br0 snoops multicast",
	} {
		found := slices.ContainsFunc(findings, func(f Finding) bool {
			return f.What == what && f.Level == Warn && strings.HasPrefix(f.Text, words) && f.Remedy != ""
		})
		if !found {
			t.Errorf("no warning of %s: %+v", what, findings)
		}
	}
}

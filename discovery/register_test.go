package discovery

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/check"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// idle makes an agent that does not run.
func idle(t *testing.T, config Config) (*Agent, *health.Board) {
	t.Helper()
	board := health.NewBoard(time.Now, nil, nil)
	a, err := New(config, Deps{State: state.New(), Board: board})
	if err != nil {
		t.Fatal(err)
	}
	return a, board
}

func checkIDs(a *Agent) []string {
	ids := []string{}
	for _, c := range a.LocalChecks() {
		ids = append(ids, c.ID)
	}
	return ids
}

func serviceNames(a *Agent) []string {
	ids := []string{}
	for _, s := range a.LocalServices() {
		ids = append(ids, s.ID)
	}
	return ids
}

func TestScriptChecksAloneMayBeMadeElsewhere(t *testing.T) {
	var asked []string
	config := withServices(newBed(t).config(1), ServiceDefinition{
		Service: state.Service{ID: "web", Name: "web", Port: 1},
		Checks: []check.Definition{
			{ID: "tcp", TCP: "127.0.0.1:1"}, {ID: "script", Script: []string{"/bin/true"}, Interval: time.Minute},
			{ID: "alias", Alias: &check.Alias{Service: "db"}}, {ID: "ttl", TTL: time.Hour},
		},
	})
	_, err := New(config, Deps{
		State: state.New(), Board: health.NewBoard(time.Now, nil, nil),
		Scripts: func(d check.Definition, here check.Probe) check.Probe {
			asked = append(asked, d.ID+" within "+d.Timeout.String()) // with its defaults
			return here
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"script within 10s"}, asked); diff != "" {
		t.Errorf("made elsewhere (-want +got):\n%s", diff)
	}
}

func TestRegistrationsOfTheAPI(t *testing.T) {
	tcp := check.Definition{TCP: "127.0.0.1:1"}
	named := func(id string) check.Definition { d := tcp; d.ID = id; return d }
	a, _ := idle(t, withServices(newBed(t).config(1), tcpService("file", "127.0.0.1:1")))
	steps := []struct {
		name string
		do   func() error
		want error // nil: done
		has  string
	}{
		{"a service", func() error { return a.RegisterService(state.Service{Name: "web"}, []check.Definition{tcp}) }, nil, ""},
		{"again, with two checks", func() error { return a.RegisterService(state.Service{Name: "web"}, []check.Definition{tcp, tcp}) }, nil, ""},
		{"with an ID of its own", func() error {
			return a.RegisterService(state.Service{ID: "web-2", Name: "web"}, []check.Definition{named("mine")})
		}, nil, ""},
		{"the file's", func() error { return a.RegisterService(state.Service{Name: "file"}, nil) }, state.ErrInvalid, "belongs to the cluster file"},
		{"a check of the file's", func() error {
			return a.RegisterService(state.Service{Name: "x"}, []check.Definition{named("service:file")})
		}, state.ErrInvalid, "belongs to the cluster file"},
		{"a check of another service", func() error {
			return a.RegisterService(state.Service{Name: "x"}, []check.Definition{named("mine")})
		}, state.ErrInvalid, `belongs to service "web-2"`},
		{"the same check twice", func() error {
			return a.RegisterService(state.Service{Name: "x"}, []check.Definition{named("y"), named("y")})
		}, state.ErrInvalid, "same ID"},
		{"a script", func() error {
			return a.RegisterService(state.Service{Name: "x"}, []check.Definition{{Script: []string{"/bin/true"}}})
		}, state.ErrInvalid, "cluster file only"},
		{"a bad check", func() error {
			return a.RegisterService(state.Service{Name: "x"}, []check.Definition{{TCP: "nowhere"}})
		}, state.ErrInvalid, "is not host:port"},
		{"no name", func() error { return a.RegisterService(state.Service{}, nil) }, state.ErrInvalid, "empty"},
		{"a tag that the store refuses", func() error {
			return a.RegisterService(state.Service{Name: "x", Tags: []string{""}}, nil)
		}, state.ErrInvalid, "tag"},
		{"another node's", func() error { return a.RegisterService(state.Service{Name: "y", Node: "other"}, nil) }, nil, ""},
		{"the other node's away", func() error { return a.DeregisterService("y") }, nil, ""},
		{"a check of the node", func() error { return a.RegisterCheck(named("disk")) }, nil, ""},
		{"a check of a service", func() error {
			d := named("extra")
			d.ServiceID = "file"
			return a.RegisterCheck(d)
		}, nil, ""},
		{"a check of a missing service", func() error {
			d := named("z")
			d.ServiceID = "nope"
			return a.RegisterCheck(d)
		}, state.ErrNotFound, "nope"},
		{"a script check", func() error { return a.RegisterCheck(check.Definition{ID: "s", Script: []string{"/bin/true"}}) }, state.ErrInvalid, "cluster file only"},
		{"a bad check alone", func() error { return a.RegisterCheck(check.Definition{ID: "s"}) }, state.ErrInvalid, "exactly one"},
		{"a check with notes that the store refuses", func() error {
			d := named("s")
			d.Notes = strings.Repeat("x", state.MaxNotes+1)
			return a.RegisterCheck(d)
		}, state.ErrInvalid, "notes"},
		{"the file's check replaced", func() error { return a.RegisterCheck(named("service:file")) }, state.ErrInvalid, "belongs to the cluster file"},
		{"a service's check replaced", func() error {
			d := named("mine")
			d.ServiceID, d.Fall = "web-2", 3
			return a.RegisterCheck(d)
		}, nil, ""},
		{"a service's check taken", func() error { return a.RegisterCheck(named("mine")) }, state.ErrInvalid, `belongs to service "web-2"`},
		{"the file's service away", func() error { return a.DeregisterService("file") }, state.ErrInvalid, "belongs to the cluster file"},
		{"an unknown service away", func() error { return a.DeregisterService("nope") }, state.ErrNotFound, "nope"},
		{"the file's check away", func() error { return a.DeregisterCheck("service:file") }, state.ErrInvalid, "belongs to the cluster file"},
		{"an unknown check away", func() error { return a.DeregisterCheck("nope") }, state.ErrNotFound, "nope"},
		{"a service's check away", func() error { return a.DeregisterCheck("service:web:2") }, nil, ""},
		{"a TTL that is none", func() error { return a.UpdateTTL("disk", state.Passing, "") }, state.ErrInvalid, "only a TTL check"},
		{"an unknown TTL", func() error { return a.UpdateTTL("nope", state.Passing, "") }, state.ErrNotFound, "nope"},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			services, checks := serviceNames(a), checkIDs(a)
			err := step.do()
			if !errors.Is(err, step.want) || step.want == nil && err != nil {
				t.Fatalf("error %v, want %v", err, step.want)
			}
			if err == nil {
				return
			}
			if !strings.Contains(err.Error(), step.has) {
				t.Errorf("error %q lacks %q", err, step.has)
			}
			if !cmp.Equal(services, serviceNames(a)) || !cmp.Equal(checks, checkIDs(a)) {
				t.Error("the error changed something")
			}
		})
	}
	if diff := cmp.Diff([]string{"file", "web", "web-2"}, serviceNames(a)); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"disk", "extra", "mine", "service:file", "service:web:1"}, checkIDs(a)); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
	if d, ok := a.CheckDefinition("mine"); !ok || d.Fall != 3 || d.ServiceID != "web-2" {
		t.Errorf("the replaced check: %+v", d)
	}
	if err := a.DeregisterService("web"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"disk", "extra", "mine", "service:file"}, checkIDs(a)); diff != "" {
		t.Errorf("checks after the service went (-want +got):\n%s", diff)
	}
}

func TestRegistrationsSurviveARestart(t *testing.T) {
	config := newBed(t).config(1)
	a, _ := idle(t, config)
	err := a.RegisterService(
		state.Service{
			ID: "web-1", Name: "web", Tags: []string{"a", "b"}, Address: address2, Port: 80,
			Meta: map[string]string{"k": "v"}, Weights: state.Weights{Passing: 10, Warning: 1},
		},
		[]check.Definition{
			{HTTP: "https://10.1.0.2/", Method: "HEAD", Header: map[string][]string{"X": {"y"}}, TLS: check.TLS{ServerName: "web", SkipVerify: true}, Rise: 2, Fall: 3},
			{TTL: 90 * time.Second, Initial: state.Passing, DeregisterAfter: time.Hour, Notes: "why"},
		})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.RegisterCheck(check.Definition{ID: "proc", Process: "sshd", Interval: time.Minute}); err != nil {
		t.Fatal(err)
	}
	again, board := idle(t, config)
	if diff := cmp.Diff(a.registered, again.registered, cmp.AllowUnexported(registrations{}), cmp.Comparer(func(x, y state.Service) bool { return sameService(&x, &y) && x.ID == y.ID })); diff != "" {
		t.Errorf("registrations (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(checkIDs(a), checkIDs(again)); diff != "" {
		t.Errorf("checks (-before +after):\n%s", diff)
	}
	if c := board.Conditions(); len(c) != 0 {
		t.Errorf("conditions: %v", c)
	}
	info, err := os.Stat(filepath.Join(config.DataDir, registrationsFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
}

func TestAFileServiceTakesAnAPIServicesPlace(t *testing.T) {
	a, _ := idle(t, newBed(t).config(1))
	if err := a.RegisterService(state.Service{Name: "apt", Port: 1}, []check.Definition{{TTL: time.Minute}}); err != nil {
		t.Fatal(err)
	}
	if err := a.SetServices([]ServiceDefinition{tcpService("apt", "127.0.0.1:1")}); err != nil {
		t.Fatal(err)
	}
	if d, _ := a.CheckDefinition("service:apt"); d.Type() != "tcp" {
		t.Errorf("the check is %+v", d)
	}
	if err := a.SetServices(nil); err != nil {
		t.Fatal(err)
	}
	if d, _ := a.CheckDefinition("service:apt"); d.Type() != "ttl" {
		t.Errorf("the registration did not come back: %+v", d)
	}
}

func TestDamagedRegistrationsArePutAside(t *testing.T) {
	config := newBed(t).config(1)
	path := filepath.Join(config.DataDir, registrationsFile)
	if err := os.WriteFile(path, []byte(`{"version":1,"services":[{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	a, board := idle(t, config)
	if got := serviceNames(a); len(got) != 0 {
		t.Errorf("services: %v", got)
	}
	if _, err := os.Stat(path + ".bad"); err != nil {
		t.Error(err)
	}
	if c := board.Conditions(); len(c) != 1 || c[0].Name != conditionRegistrations {
		t.Errorf("conditions: %v", c)
	}
}

func TestDecodeRegistrationsRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":            ``,
		"no JSON":            `services`,
		"no version":         `{}`,
		"a newer version":    `{"version":2}`,
		"a nameless service": `{"version":1,"services":[{}]}`,
		"two of an ID":       `{"version":1,"services":[{"id":"a","checks":[{"id":"c","tcp":"h:1"}]},{"id":"a"}]}`,
		"two checks":         `{"version":1,"checks":[{"id":"a","tcp":"h:1"},{"id":"a","tcp":"h:1"}]}`,
		"a bad check":        `{"version":1,"checks":[{"id":"a"}]}`,
		"a bad duration":     `{"version":1,"checks":[{"id":"a","ttl":"soon"}]}`,
		"a bad address":      `{"version":1,"services":[{"id":"a","address":"nowhere"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			if r, err := decodeRegistrations([]byte(data), node1); err == nil {
				t.Errorf("accepted: %+v", r)
			}
		})
	}
}

// A kind that the file forgot would come back after a restart as another check,
// or as none.
func TestEveryKindOfTheAPIIsKept(t *testing.T) {
	for _, d := range []check.Definition{
		{TCP: "h:1"}, {UDP: "h:1"}, {NTP: "h:1"}, {Process: "sshd"}, {TTL: time.Minute},
		{HTTP: "https://h/", TLS: check.TLS{ServerName: "x", CAFile: "/ca", SkipVerify: true}, Header: map[string][]string{"A": {"b"}}},
		{GRPC: "h:1/s", GRPCTLS: true, TLS: check.TLS{ServerName: "x"}},
		{Alias: &check.Alias{Service: "web"}}, {Alias: &check.Alias{Node: "fb2"}},
	} {
		d.ID, d.Notes, d.DeregisterAfter = "c", "why", time.Hour
		d = d.WithDefaults()
		data, err := encodeRegistrations(registrations{checks: map[string]check.Definition{"c": d}})
		if err != nil {
			t.Fatal(err)
		}
		r, err := decodeRegistrations(data, node1)
		if diff := cmp.Diff(d, r.checks["c"]); err != nil || diff != "" {
			t.Errorf("%s: %v (-kept +read):\n%s", d.Type(), err, diff)
		}
	}
}

func FuzzDecodeRegistrations(f *testing.F) {
	f.Add([]byte(`{"version":1,"services":[{"id":"a","name":"web","tags":["t"],"address":"10.1.0.1","port":80,"checks":[{"id":"c","http":"http://h/","interval":"10s"}]}],"checks":[{"id":"d","ttl":"30s"}]}`))
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"checks":[{"id":"p","process":"sshd","rise":3,"fall":2,"initial":"passing"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRegistrations(data, node1)
		if err != nil {
			return
		}
		// What is accepted can be written, and reads the same.
		encoded, err := encodeRegistrations(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeRegistrations(encoded, node1)
		if err != nil {
			t.Fatalf("%s: %v", encoded, err)
		}
		twice, err := encodeRegistrations(again)
		if err != nil || string(twice) != string(encoded) {
			t.Errorf("wrote %s, then %s (%v)", encoded, twice, err)
		}
		// And can be declared and registered without a refusal by the store.
		_, _, _ = combine(nil, r)
	})
}

func TestNodeID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := NodeID(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !validUUID(first) {
		t.Errorf("%q is no UUID", first)
	}
	again, err := NodeID(dir)
	if err != nil || again != first {
		t.Errorf("the second time: %q, %v", again, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	if other, err := NodeID(t.TempDir()); err != nil || other == first {
		t.Errorf("another directory: %q, %v", other, err)
	}
	for _, bad := range []string{"", "x", first[:35], strings.Replace(first, "-", "x", 1)} {
		if err := os.WriteFile(filepath.Join(dir, nodeIDFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NodeID(dir); err == nil || !strings.Contains(err.Error(), "not a UUID") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/admin"
	"holdfast/vrrp"
)

// oneRouter is a net unit's one virtual router, dns1 of fbservice1.
type oneRouter struct{ state vrrp.State }

func (r *oneRouter) Status(context.Context) ([]vrrp.RouterReport, error) {
	own, other := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2")
	report := vrrp.RouterReport{
		Settings: vrrp.RouterSettings{
			Router: vrrp.Router{Name: "dns1", VRID: 161, Version: 3, Priority: 253, Source: own, Advertised: []netip.Addr{netip.MustParseAddr("10.1.0.101")}},
			Nodes:  map[netip.Addr]string{other: "fbservice2"}, Order: []string{"fbservice1", "fbservice2"},
		},
		Status: vrrp.Status{State: r.state, Since: time.Now().Add(-time.Minute), Reason: "first\x1b[2J", Priority: 253, Interval: 10 * time.Millisecond, Active: own},
		Link:   vrrp.LinkReport{Name: "bradm", Up: true},
		Held:   []vrrp.AddressReport{{Prefix: netip.MustParsePrefix("10.1.0.101/32"), Wanted: true, Present: true}},
	}
	if r.state != vrrp.Active {
		report.Status.Active = other
	}
	return []vrrp.RouterReport{report}, nil
}
func (r *oneRouter) Yield(context.Context, string) error { r.state = vrrp.Backup; return nil }
func (r *oneRouter) Pull(context.Context, string) error  { r.state = vrrp.Active; return nil }
func (r *oneRouter) Release(context.Context, string) error {
	return nil
}
func (r *oneRouter) Plan(context.Context) ([]vrrp.Change, error) {
	return []vrrp.Change{{Router: "dns1", Interface: "bradm", Prefix: netip.MustParsePrefix("10.1.0.101/32"), Kind: vrrp.Add, Why: "it is Active"}}, nil
}
func (r *oneRouter) Guard() vrrp.GuardReport { return vrrp.GuardReport{PID: 7} }

// netUnit answers on a socket until the test ends.
func netUnit(t *testing.T, routers vrrp.Routers) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "net.sock")
	server, err := admin.New(admin.Config{Unit: "net", Path: socket}, admin.Deps{
		Handler: vrrp.NewAdmin(vrrp.AdminDeps{Node: "fbservice1", Routers: routers}),
		Log:     slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server)
	return socket
}

// serve runs an admin server until the test ends.
func serve(t *testing.T, server *admin.Server) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- server.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatal("the socket does not open")
	}
}

func TestVIPCommandsAskTheNetUnit(t *testing.T) {
	socket := netUnit(t, &oneRouter{state: vrrp.Active})
	for _, test := range []struct {
		args   string
		status int
		words  string
	}{
		{"list", exitOK, "fbservice1"},
		{"show dns1", exitOK, "VRID 161, version 3, every 10ms, on bradm"},
		{"show nothing", exitNotFound, "nothing"},
		{"explain dns1", exitOK, "fbservice1 holds it, for 1m"},
		{"plan", exitOK, "ip address add 10.1.0.101/32 dev bradm"},
		{"probe dns1", exitOK, "ok   dns1 interface: bradm is up"},
		{"move dns1 --to fbservice2", exitFailed, "ssh fbservice2 holdfast vip hold dns1"},
		{"move dns1", exitOK, "fbservice2 holds dns1"},
		{"move dns1", exitFailed, "fbservice1 does not hold dns1, fbservice2 does"},
		{"probe dns1", exitDegraded, "none arrived since the agent began"},
		{"hold dns1", exitOK, "fbservice1 holds dns1"},
		{"hold nothing", exitNotFound, "no such virtual router"},
		{"release dns1", exitOK, "priorities decide about dns1 again"},
		{"move", exitUsage, "expected"},
	} {
		var out bytes.Buffer
		args := append([]string{"vip"}, strings.Fields(test.args)...)
		status := execute(t.Context(), append(args, "--socket", socket), strings.NewReader(""), &out, &out)
		if status != test.status || !strings.Contains(out.String(), test.words) {
			t.Errorf("vip %s: exit status %d, want %d; it must say %q and says:\n%s", test.args, status, test.status, test.words, out.String())
		}
		if strings.ContainsRune(out.String(), '\x1b') {
			t.Errorf("vip %s steers the terminal: %q", test.args, out.String())
		}
	}
	for _, command := range []string{"list", "show dns1", "explain dns1", "plan", "probe", "hold dns1", "release dns1"} {
		var out bytes.Buffer
		args := append([]string{"vip"}, strings.Fields(command)...)
		if status := execute(t.Context(), append(args, "--json", "--socket", socket), strings.NewReader(""), &out, &out); status != exitOK || !json.Valid(out.Bytes()) {
			t.Errorf("vip %s --json: exit status %d, %s", command, status, out.String())
		}
	}
}

func TestVIPCommandsSayThatNobodyAnswers(t *testing.T) {
	var out bytes.Buffer
	status := execute(t.Context(), []string{"vip", "list", "--socket", filepath.Join(t.TempDir(), "none.sock")}, strings.NewReader(""), &out, &out)
	if status != exitUnreachable || !strings.Contains(out.String(), "is holdfast running?") {
		t.Errorf("exit status %d: %s", status, out.String())
	}
}

func TestConfigShowsWhatVRRPKnows(t *testing.T) {
	var out bytes.Buffer
	if status := execute(t.Context(), []string{"config", "show", "../../examples/scibian.yaml"}, strings.NewReader(""), &out, &out); status != exitOK {
		t.Fatalf("exit status %d: %s", status, out.String())
	}
	for _, words := range []string{"preempt: false", "unicast: true", "process: sshd"} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("it lacks %q", words)
		}
	}
}

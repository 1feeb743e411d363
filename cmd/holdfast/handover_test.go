package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"holdfast/internal/run"
	"holdfast/logrelay"
	"holdfast/vrrp"
)

// heldRouters are two routers, of which this node has the first.
type heldRouters struct {
	vrrp.Routers
	said []string
}

func (r *heldRouters) Status(context.Context) ([]vrrp.RouterReport, error) {
	report := func(name string, state vrrp.State, prefixes ...string) (r vrrp.RouterReport) {
		r.Settings.Name, r.Status.State = name, state
		for _, p := range prefixes {
			r.Held = append(r.Held, vrrp.AddressReport{Prefix: netip.MustParsePrefix(p)})
		}
		return r
	}
	return []vrrp.RouterReport{
		report("logs", vrrp.Active, "10.1.0.101/24", "fd00::101/64"), report("dns1", vrrp.Active, "10.1.0.102/24"),
		report("away", vrrp.Backup, "10.1.0.103/24"),
	}, nil
}

func (r *heldRouters) Yield(_ context.Context, router string) error {
	r.said = append(r.said, "yield "+router)
	return nil
}

// handing makes a handover of them; what its relay answers.
func handing(answer error) (*handover, *heldRouters) {
	routers := &heldRouters{}
	return &handover{routers, func(_ context.Context, addrs []netip.Addr) error {
		routers.said = append(routers.said, fmt.Sprint("relay ", addrs))
		return answer
	}, slog.New(slog.DiscardHandler)}, routers
}

// TestTheRelayHearsOfAPlannedMoveFirst: of the addresses that this node has, and
// what it answers stops no move.
func TestTheRelayHearsOfAPlannedMoveFirst(t *testing.T) {
	for _, answer := range []error{nil, errors.New("it is busy")} {
		h, routers := handing(answer)
		for _, name := range []string{"logs", "away", "dns1"} {
			if err := h.Yield(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
		want := []string{"relay [10.1.0.101 fd00::101]", "yield logs", "yield away", "relay [10.1.0.102]", "yield dns1"}
		if diff := cmp.Diff(want, routers.said); diff != "" {
			t.Errorf("the relay answers %v: %s", answer, diff)
		}
	}
}

// TestTheRelayHearsOfTheEndBeforeTheRoutersDo: of all addresses at once. In the
// other order they are another node's when its clients hear of it.
func TestTheRelayHearsOfTheEndBeforeTheRoutersDo(t *testing.T) {
	h, routers := handing(nil)
	tasks := (&network{given: h}).tasks()
	if last := tasks[len(tasks)-1]; last != run.Task(h) {
		t.Errorf("%s is stopped first", last)
	}
	moves := run.Func("routers", func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		routers.said = append(routers.said, "addresses go")
		return nil
	})
	ctx, end := context.WithCancel(t.Context())
	group := run.Group{Log: slog.New(slog.DiscardHandler)}
	if err := group.Run(ctx, end, moves, h); err != nil {
		t.Fatal(err)
	}
	want := []string{"relay [10.1.0.101 fd00::101 10.1.0.102]", "addresses go"}
	if diff := cmp.Diff(want, routers.said); diff != "" {
		t.Error(diff)
	}
}

// TestTheRelayIsToldByItsSocket, if there is one.
func TestTheRelayIsToldByItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs.sock")
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.101"), netip.MustParseAddr("fd00::101")}
	tell := tellRelay(path)
	if err := tell(t.Context(), addrs); err != nil {
		t.Errorf("no relay runs here: %v", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path+" "+strings.Join(r.URL.Query()["address"], " "))
		if len(asked) > 1 {
			http.Error(w, "it is full", http.StatusTeapot)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	first, second := tell(t.Context(), addrs), tell(t.Context(), addrs)
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	<-served
	want := "POST " + logrelay.LeavePath + " 10.1.0.101 fd00::101"
	if first != nil || !slices.Equal(asked, []string{want, want}) {
		t.Errorf("asked %q: %v", asked, first)
	}
	if second == nil || !strings.Contains(second.Error(), "it is full") {
		t.Errorf("a relay that refuses: %v", second)
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/api"
	"holdfast/internal/state"
	"holdfast/vrrp"
)

// twoRouters are virtual routers that do at once what they are told.
type twoRouters struct {
	mu     sync.Mutex
	status map[string]*vrrp.Status
	down   error // they do not run
	said   []string
}

func (r *twoRouters) Status(context.Context) (all []vrrp.RouterReport, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range []string{"dns1", "front"} {
		if s := r.status[name]; s != nil {
			all = append(all, vrrp.RouterReport{Settings: vrrp.RouterSettings{Router: vrrp.Router{Name: name}}, Status: *s})
			all[len(all)-1].Settings.Preempt = true
			all[len(all)-1].Settings.Nodes = map[netip.Addr]string{heldBy(2): "f2"}
		}
	}
	return all, r.down
}

func (r *twoRouters) order(what, name string, yielded bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, what+" "+name)
	r.status[name].Yielded = yielded
	return nil
}

func (r *twoRouters) Yield(_ context.Context, name string) error {
	return r.order("yield", name, true)
}

func (r *twoRouters) Release(_ context.Context, name string) error {
	return r.order("release", name, false)
}

// hear is told of routers before they move, of all at once.
func (r *twoRouters) hear(_ context.Context, holders map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, fmt.Sprint("hear ", holders))
}

// told is what they were told since the last call, in the order of the names.
func (r *twoRouters) told() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.said)
	said := strings.Join(r.said, ", ")
	r.said = nil
	return said
}

func TestAMachineThatBootsDrainedStandsBackFromItsAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, index := state.New(), uint64(0)
		apply := func(c state.Command) {
			t.Helper()
			index++
			if err := store.Apply(index, c); err != nil {
				t.Fatal(err)
			}
		}
		register := func(node string) {
			t.Helper()
			apply(state.Register{Node: state.Node{Name: node, Address: netip.MustParseAddr("10.1.0.1")}, Checks: []state.Check{{Node: node, ID: api.NodeMaintenance, Status: state.Critical}}})
		}
		deregister := func() { apply(state.Deregister{Node: "f1", Checks: []string{api.NodeMaintenance}}) }
		ctx, stop := context.WithCancel(t.Context())
		routers := &twoRouters{status: map[string]*vrrp.Status{"dns1": {}, "front": {}}, down: errors.New("they have not begun")}
		boot := func() {
			go func() {
				s := &standBack{node: "f1", state: store, routers: routers, hearOut: routers.hear, log: slog.New(slog.DiscardHandler)}
				_ = s.Run(ctx, func() {}) // it has no error
			}()
		}
		boot()
		register("f2")
		if told := routers.told(); told != "" {
			t.Errorf("another node is drained, and they are told %s", told)
		}
		register("f1")
		if told := routers.told(); told != "" {
			t.Errorf("before they run they are told %s", told)
		}
		routers.mu.Lock()
		routers.down = nil
		routers.mu.Unlock()
		time.Sleep(standBackAgain)
		if told := routers.told(); told != "hear map[dns1:f1 front:f1], yield dns1, yield front" {
			t.Errorf("drained: they are told %q", told)
		}
		stop()
		synctest.Wait()

		ctx, stop = context.WithCancel(t.Context()) // the machine boots: one was held here by an admin since
		routers.status = map[string]*vrrp.Status{"dns1": {}, "front": {Pulled: true}}
		boot()
		if told := routers.told(); told != "hear map[dns1:f1], yield dns1" {
			t.Errorf("after a reboot they are told %q", told)
		}
		routers.mu.Lock()
		routers.status["dns1"].Yielded = false // nobody took it: it stays
		routers.mu.Unlock()
		register("f2")
		if told := routers.told(); told != "" {
			t.Errorf("what nobody takes is offered again: %s", told)
		}
		deregister()
		if told := routers.told(); told != "release dns1" {
			t.Errorf("undrained: they are told %q", told)
		}
		register("f1")
		if told := routers.told(); told != "hear map[dns1:f1], yield dns1" {
			t.Errorf("drained again: they are told %q", told)
		}
		routers.mu.Lock()
		*routers.status["dns1"] = vrrp.Status{
			Yielded: true, State: vrrp.Backup, Active: heldBy(2), Released: 253,
			Peers: []vrrp.PeerStatus{{Address: heldBy(2), Advert: vrrp.Advert{Priority: 252}}},
		}
		routers.mu.Unlock()
		deregister()
		if told := routers.told(); told != "hear map[dns1:f2], release dns1" {
			t.Errorf("undrained, and another has it: they are told %q", told)
		}
		register("f1")
		if told := routers.told(); !strings.HasSuffix(told, "yield dns1") {
			t.Errorf("drained once more: they are told %q", told)
		}
		routers.mu.Lock()
		delete(routers.status, "dns1") // by a reload
		routers.mu.Unlock()
		deregister()
		time.Sleep(3 * standBackAgain)
		if told := routers.told(); told != "" {
			t.Errorf("undrained without it: they are told %q", told)
		}
		stop()
		synctest.Wait()
	})
}

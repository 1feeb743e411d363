package vrrp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/kernel/link"
	"holdfast/internal/runfile"
)

// reloadLoop is a loop without interfaces, whose routers are Active. told are the
// states that hooks of routers and groups heard, once they are through.
func reloadLoop(t *testing.T, settings ...RouterSettings) (l *loop, told func() []string) {
	t.Helper()
	m, err := newMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	log, ran := slog.New(slog.DiscardHandler), &recorder{}
	ctx, kill := context.WithCancel(context.Background())
	l = &loop{
		log: log, metrics: m, guard: &guardian{}, hooks: newHooks(ctx, ran, log, m), table: newLinkTable(), words: map[string]Event{},
		told:  &conditions{log: log, board: health.NewBoard(time.Now, nil, nil), disagreeing: map[string]map[netip.Addr]string{}},
		fence: newFence("n1", Store{}), orders: &standingOrders{}, machine: NewMachine(nil), garbage: newGarbage(),
	}
	l.reconfigure(settings, time.Now())
	l.step(Event{Kind: Start, At: time.Now()})
	for i := range settings {
		l.step(Event{Kind: Tracked, At: time.Now(), Name: linkTrack(settings[i].Name), Up: true})
	}
	for range settings {
		at, _ := l.machine.Next()
		l.step(Event{Kind: Tick, At: at})
	}
	for _, in := range l.instances {
		if in.state != Active {
			t.Fatalf("%s is %v", in.settings.Name, in.state)
		}
	}
	return l, func() (lines []string) {
		l.hooks.close(context.Background(), kill)
		for _, c := range ran.ran {
			lines = append(lines, fmt.Sprint(c.Argv[1:4]))
		}
		return lines
	}
}

// inGroup is a router of the sync group "pair".
func inGroup(name string, vrid uint8) RouterSettings {
	core := loopRouter()
	core.Name, core.VRID, core.Group, core.Held = name, vrid, "pair", []netip.Prefix{netip.PrefixFrom(core.Advertised[0], 32)}
	return RouterSettings{Router: core, Hooks: Hooks{Notify: []string{"notify"}}}
}

// TestHooksHearOnceThatAGroupIsGone: of a group whose members all go at a reload,
// or become other virtual routers, as of one that ends with the agent.
func TestHooksHearOnceThatAGroupIsGone(t *testing.T) {
	for what, after := range map[string][]RouterSettings{
		"the group is gone from the file": nil,
		"its routers have other VRIDs":    {inGroup("a", 61), inGroup("b", 62)},
	} {
		l, told := reloadLoop(t, inGroup("a", 51), inGroup("b", 52))
		l.reconfigure(after, time.Now())
		lines := told()
		stops := 0
		for _, line := range lines {
			if line == "[GROUP pair STOP]" {
				stops++
			}
		}
		if stops != 1 {
			t.Errorf("%s: hooks hear STOP of it %d times: %v", what, stops, lines)
		}
	}
}

func TestExplainKnowsThatAReloadEndedTheRouterBefore(t *testing.T) {
	l, _ := reloadLoop(t, inGroup("a", 51))
	l.reconfigure([]RouterSettings{inGroup("a", 61)}, time.Now())
	in := l.instances[0]
	if !slices.ContainsFunc(in.history, func(h Transition) bool { return h.From == Active && h.To == Initialize }) {
		t.Errorf("its transitions are %v", in.history)
	}
	for i := 1; i < len(in.history); i++ {
		if in.history[i].From != in.history[i-1].To {
			t.Errorf("it left %v where it had come to %v", in.history[i].From, in.history[i-1].To)
		}
	}
}

// TestAnAddressThatAReloadGivesToAnotherVIPStays: from one to another on the same
// interface, whichever of the two hears of it first.
func TestAnAddressThatAReloadGivesToAnotherVIPStays(t *testing.T) {
	onHost(t, func(l *loop, eth0 link.Link) error {
		if err := serving(t, l.appliers); err != nil {
			return err
		}
		defer l.appliers.handle.Close()
		defer l.appliers.close()
		a, err := l.appliers.get(eth0)
		if err != nil {
			return err
		}
		shared := netip.MustParsePrefix("10.9.0.200/32")
		of := func(name, own string, held ...netip.Prefix) *instance {
			in := instanceOf(Router{Name: name, Held: append(held, netip.MustParsePrefix(own))})
			in.metrics = l.appliers.metrics.router(name)
			return in
		}
		front, back := []*instance{of("a", "10.9.0.101/32", shared), of("b", "10.9.0.102/32")}, []*instance{of("b", "10.9.0.102/32", shared), of("a", "10.9.0.101/32")}
		for _, order := range [][]*instance{front, back, {front[1], front[0]}} {
			for _, in := range order {
				a.hold(in)
			}
			done := make(chan bool)
			a.withdrawFenced("nobody", func(ok bool) { done <- ok })
			<-done
			there, err := l.appliers.handle.Addrs()
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(there, func(at link.Addr) bool { return at.Prefix == shared }) {
				return fmt.Errorf("it is gone: there is %v", there)
			}
			var owners []string
			for _, e := range l.appliers.journal.list() {
				if e.Prefix == shared {
					owners = append(owners, e.Router)
				}
			}
			if len(owners) != 1 {
				return fmt.Errorf("in the journal it is of %v", owners)
			}
		}
		return nil
	})
}

// serving gives appliers what they need to work in this network namespace.
func serving(t *testing.T, all *appliers) error {
	at, err := runfile.Here()
	if err != nil {
		return err
	}
	if all.journal, _, err = openJournal(t.TempDir(), at); err != nil {
		return err
	}
	if all.metrics, err = newMetrics(prometheus.NewRegistry()); err != nil {
		return err
	}
	all.told = &conditions{log: all.log, board: health.NewBoard(time.Now, nil, nil)}
	all.handle, err = link.Open()
	return err
}

package keepalived

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/lab"
	"holdfast/lab/stall"
	"holdfast/lab/wire"
)

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	m.Run()
}

func TestConfigIsWhatKeepalivedReads(t *testing.T) {
	c := Config{Global: []string{"router_id a"}, Instances: []Instance{{
		Version: 3, VRID: 51, Priority: 100, Interval: 10 * time.Millisecond, NoPreempt: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.101/32")},
	}, {
		Name: "second", Interface: "eth1", Version: 2, VRID: 52, Priority: 50, Interval: 2 * time.Second,
		Password: "secret", Source: netip.MustParseAddr("10.1.0.1"), Peers: []netip.Addr{netip.MustParseAddr("10.1.0.2")},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.102/32")},
		Excluded:  []netip.Prefix{netip.MustParsePrefix("10.1.0.103/32")},
	}}}
	want := `global_defs {
    router_id a
}
vrrp_instance vr51 {
    state BACKUP
    interface eth0
    virtual_router_id 51
    version 3
    priority 100
    advert_int 0.01
    nopreempt
    virtual_ipaddress {
        10.1.0.101/32
    }
}
vrrp_instance second {
    state BACKUP
    interface eth1
    virtual_router_id 52
    version 2
    priority 50
    advert_int 2
    unicast_src_ip 10.1.0.1
    authentication {
        auth_type PASS
        auth_pass secret
    }
    unicast_peer {
        10.1.0.2
    }
    virtual_ipaddress {
        10.1.0.102/32
    }
    virtual_ipaddress_excluded {
        10.1.0.103/32
    }
}
`
	if diff := cmp.Diff(want, c.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What is measured of others must itself be shown to see: a pair of keepalived
// fails over and back, and everything that the wire tells about it is there.
func TestPairOfKeepalivedIsSeenOnTheWire(t *testing.T) {
	Require(t)
	machine := stall.Test(t, "")
	l := lab.NewTest(t, lab.Options{Networks: []string{"adm"}})
	var hosts [3]*lab.Host
	var wg sync.WaitGroup
	for i, name := range []string{"alpha", "beta", "client"} {
		wg.Go(func() {
			var err error
			if hosts[i], err = l.AddHost(name, lab.On("adm", fmt.Sprintf("10.1.0.%d/24", i+1), fmt.Sprintf("fd00::%d/64", i+1))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	watch := must(wire.Listen(l, "adm"))(t)
	defer watch.Close()
	vip, vip6 := netip.MustParseAddr("10.1.0.101"), netip.MustParseAddr("fd00::101")
	const interval = 100 * time.Millisecond
	start := func(h *lab.Host, priority int) *Daemon {
		return must(Start(h, Config{Instances: []Instance{
			{Version: 3, VRID: 51, Priority: priority, Interval: interval, Addresses: []netip.Prefix{netip.PrefixFrom(vip, 32)}},
			{Name: "six", Version: 3, VRID: 51, Priority: priority, Interval: interval, Addresses: []netip.Prefix{netip.PrefixFrom(vip6, 128)}},
		}}))(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a := wire.MAC(must(hosts[0].MAC("adm"))(t))
	b := wire.MAC(must(hosts[1].MAC("adm"))(t))
	active := func(since time.Time, by wire.MAC, ipv6 bool) wire.Event {
		t.Helper()
		r := wire.Router{VRID: 51, IPv6: ipv6}
		return must(watch.Await(ctx, since, "an advert of "+by.String(), func(e wire.Event) bool {
			return r.Is(e) && e.From == by && e.Priority > 0
		}))(t)
	}
	first := start(hosts[0], 100)
	began := time.Time{}
	e := active(began, a, false)
	if e.Version != 3 || e.Priority != 100 || e.Interval != interval || e.TTL != 255 || e.Src != netip.MustParseAddr("10.1.0.1") {
		t.Errorf("the advert was seen as %v, ttl %d", e, e.TTL)
	}
	active(began, a, true)
	start(hosts[1], 50)

	asker := must(wire.OpenSender(hosts[2], "eth0"))(t)
	defer asker.Close()
	asking, stop := context.WithCancel(ctx)
	defer wg.Wait() // before the sender is closed, however the test ends
	defer stop()
	wg.Go(func() {
		if err := asker.Ask(asking, netip.MustParseAddr("10.1.0.3"), 5*time.Millisecond, vip); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := asker.Ask(asking, netip.MustParseAddr("fd00::3"), 5*time.Millisecond, vip6); err != nil {
			t.Error(err)
		}
	})
	ping := must(wire.StartPing(hosts[2], "eth0", vip, 2*time.Millisecond))(t)
	ping6 := must(wire.StartPing(hosts[2], "eth0", vip6, 2*time.Millisecond))(t)
	answers := func(since time.Time, addr netip.Addr, by wire.MAC) {
		t.Helper()
		must(watch.Await(ctx, since, by.String()+" answers for "+addr.String(), func(e wire.Event) bool {
			return e.Kind == wire.Answer && e.Addr == addr && e.From == by
		}))(t)
	}
	answers(began, vip, a)
	answers(began, vip6, a)
	replied(ctx, t, ping, began, a)
	replied(ctx, t, ping6, began, a)

	stopped := time.Now()
	if err := first.Stop(ctx); err != nil {
		t.Error(err)
	}
	active(stopped, b, false)
	answers(stopped, vip, b)
	answers(stopped, vip6, b)
	replied(ctx, t, ping, stopped, b)
	replied(ctx, t, ping6, stopped, b)
	gap, ok := wire.Takeover(ping.Pings(), stopped, a)
	if !ok {
		t.Error("the ping gap has no end")
	}
	machine.Judge(t, "the ping gap", 2*time.Second, stopped, stopped.Add(gap))
	gap6, _ := wire.Takeover(ping6.Pings(), stopped, a)
	t.Logf("SIGTERM at 100ms: IPv4 %v, IPv6 %v; longest silence %v", gap, gap6, wire.LongestSilence(ping.Pings(), stopped))

	// Killed as a whole it goes on answering, which is what we are better at.
	second := start(hosts[0], 100)
	returned := time.Now()
	active(returned, a, false)
	answers(returned, vip, a) // it advertises before it has the address
	killed := time.Now()
	if err := second.Kill(); err != nil {
		t.Error(err)
	}
	active(killed, b, false)
	// Each answers more than once: what began and ended is what can be found below.
	must(watch.Await(ctx, killed, "both answer", func(wire.Event) bool {
		return len(wire.Overlaps(wire.Answering(watch.Since(killed), vip, 100*time.Millisecond), 0)) > 0
	}))(t)
	// The kernel takes a moment to end those who were killed; another child would
	// stay.
	if err := attempt(ctx, func() error {
		left, err := hosts[0].Run(ctx, "pgrep", "keepalived")
		if errors.As(err, new(*lab.ExitError)) { // it has found none
			return nil
		}
		if err == nil {
			err = fmt.Errorf("there still runs %q", left)
		}
		return err
	}); err != nil {
		t.Errorf("after SIGKILL: %v", err)
	}
	stop()
	wg.Wait()
	for _, p := range []*wire.Pinger{ping, ping6} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	events := watch.Events()
	actives := wire.Actives(events, wire.Router{VRID: 51, Interval: interval})
	for _, s := range actives {
		t.Log(s)
	}
	// Who stands still for three intervals is taken for dead.
	var stalls []wire.Window
	for _, s := range machine.Spans(time.Time{}, time.Now()) {
		stalls = append(stalls, wire.Window{From: s.From, To: s.To.Add(interval)})
	}
	if over := wire.Overlaps(actives, interval, wire.Merge(stalls...)...); len(over) > 0 {
		t.Errorf("two Actives: %v", over)
	}
	if over := wire.Overlaps(wire.Answering(events, vip, 100*time.Millisecond), 0); len(over) == 0 {
		t.Error("that both hosts answered ARP after the kill was not found")
	}
	if strays := wire.Strays(events, actives, vip, interval); len(strays) == 0 {
		t.Error("that the dead host answered ARP was not found")
	}
}

// attempt tries again and again until there is no error or ctx ends; then it is
// the last one.
func attempt(ctx context.Context, try func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func replied(ctx context.Context, t *testing.T, p *wire.Pinger, since time.Time, by wire.MAC) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, ping := range p.Pings() {
			if ping.By == by && ping.Reply.After(since) {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no ping reply of %s", by)
		case <-tick.C:
		}
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

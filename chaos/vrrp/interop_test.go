package vrrp_test

import (
	"fmt"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/routers"
	"holdfast/lab/wire"
)

// settings are one way to run a virtual router.
type settings struct {
	name     string
	version  int
	interval time.Duration
	password string
	ipv6     bool
	unicast  bool
}

func (s settings) options(kinds ...routers.Kind) routers.Options {
	o := routers.Options{
		Members: kinds, Version: s.version, Interval: s.interval, Password: s.password, IPv6: s.ipv6, Unicast: s.unicast,
		Ask: max(s.interval/4, 5*time.Millisecond),
	}
	for i := range kinds {
		o.Priorities = append(o.Priorities, 200-50*i)
	}
	return o
}

func ways() []settings {
	const slow, fast, fastest = time.Second, 100 * time.Millisecond, 10 * time.Millisecond
	return []settings{
		{name: "v2", version: 2, interval: slow},
		{name: "v2 PASS", version: 2, interval: slow, password: "secret"},
		{name: "v2 PASS unicast", version: 2, interval: slow, password: "longer-than-eight", unicast: true},
		{name: "v3 1s", version: 3, interval: slow},
		{name: "v3 100ms", version: 3, interval: fast},
		{name: "v3 100ms unicast", version: 3, interval: fast, unicast: true},
		{name: "v3 100ms IPv6", version: 3, interval: fast, ipv6: true},
		{name: "v3 100ms IPv6 unicast", version: 3, interval: fast, ipv6: true, unicast: true},
		{name: "v3 10ms", version: 3, interval: fastest},
	}
}

// bothWays are who is first and who is second.
func bothWays() [][]routers.Kind {
	return [][]routers.Kind{{routers.Holdfast, routers.Keepalived}, {routers.Keepalived, routers.Holdfast}}
}

// TestEachTakesOverFromTheOtherAndGivesBack: the first stops in order, comes
// back, is killed, comes back. Never are there two for longer than an advert.
func TestEachTakesOverFromTheOtherAndGivesBack(t *testing.T) {
	for _, way := range ways() {
		for _, kinds := range bothWays() {
			t.Run(fmt.Sprintf("%s/%s first", way.name, kinds[0]), func(t *testing.T) {
				if way.interval >= 100*time.Millisecond {
					t.Parallel() // the others are disturbed by whatever runs beside them
				}
				b := newBench(t, way.options(kinds...))
				b.start()
				first, second := b.Members[0], b.Members[1]

				stopped := time.Now()
				ctx, cancel := b.context()
				defer cancel()
				b.must(first.Stop(ctx))
				e := b.awaitSole(1, stopped)
				if way.interval >= time.Second { // if priority 0 is not heeded, it comes later
					b.machine.Judge(t, "SIGTERM: until the other's second advert", 4*way.interval, stopped, e.At)
				}
				if !b.resigned(first, stopped) {
					t.Errorf("%s stopped without priority 0", first)
				}
				b.holds(second, true)
				b.holds(first, false)

				back := time.Now()
				b.must(first.Start())
				b.awaitSole(0, back)
				b.holds(second, false)

				killed := time.Now()
				b.must(first.Kill())
				b.awaitSole(1, killed)
				if first.Kind == routers.Holdfast {
					b.holds(first, false)
				} else {
					b.must(first.Sweep())
				}
				b.must(first.Start())
				b.awaitSole(0, time.Now())
				b.neverTwo()
			})
		}
	}
}

// resigned tells whether a member said priority 0 since.
func (b *bench) resigned(m *routers.Member, since time.Time) bool {
	for _, e := range b.Watch.Since(since) {
		if b.Router(0).Is(e) && e.From == m.MAC && e.Priority == 0 {
			return true
		}
	}
	return false
}

// TestTiesAreDecidedByTheAddress: a partition makes both of equal priority
// Active; when it heals, the higher address stays, and the neighbours learn it.
func TestTiesAreDecidedByTheAddress(t *testing.T) {
	for _, kinds := range bothWays() {
		t.Run(string(kinds[0])+" has the lower address", func(t *testing.T) {
			t.Parallel()
			o := settings{version: 3, interval: 100 * time.Millisecond}.options(kinds...)
			o.Priorities = []int{100, 100}
			b := newBench(t, o)
			for i, m := range b.Members {
				if m.Kind == routers.Holdfast { // whose file refuses that two have the same
					m.Options.Priorities = []int{100, 100}
					m.Options.Priorities[1-i] = 99
				}
			}
			b.must(b.Members[0].Start())
			b.awaitSole(0, time.Now())
			began := time.Now()
			cut, err := b.Lab.Partition([]*lab.Host{b.Members[0].Host}, []*lab.Host{b.Members[1].Host})
			b.must(err)
			b.must(b.Members[1].Start())
			ctx, cancel := b.context()
			defer cancel()
			_, err = b.AwaitActive(ctx, b.Members[1], 0, began)
			b.must(err)
			dropped, err := cut.Dropped()
			b.must(err)
			if dropped == 0 {
				t.Error("the partition dropped nothing")
			}
			b.must(cut.Heal())
			healed := time.Now()
			b.awaitSole(1, healed)
			b.holds(b.Members[0], false)
			b.neverTwo(wire.Window{From: began, To: healed})
		})
	}
}

// TestNoPreemptStaysWhereItIs: a better router that does not preempt lets the
// other be, whichever of the two programs it is.
func TestNoPreemptStaysWhereItIs(t *testing.T) {
	for _, kinds := range bothWays() {
		t.Run(string(kinds[0])+" is better", func(t *testing.T) {
			t.Parallel()
			o := settings{version: 3, interval: 100 * time.Millisecond}.options(kinds...)
			o.NoPreempt = true
			b := newBench(t, o)
			b.must(b.Members[1].Start())
			b.awaitSole(1, time.Now())
			b.must(b.Members[0].Start())
			b.awaitListening(b.Members[0], 0) // or the second ends before it has begun
			ctx, cancel := b.context()
			defer cancel()
			after := time.Now().Add(time.Second)
			_, err := b.Watch.Await(ctx, after, "another second of adverts", func(e wire.Event) bool { return b.Router(0).Is(e) })
			b.must(err)
			for _, s := range b.actives() {
				if s.By == b.Members[0].MAC {
					tell := t.Errorf
					if b.excused(s.Start) { // the other's adverts did not come
						tell = t.Logf
					}
					tell("%s became Active %v", b.Members[0], s)
				}
			}
		})
	}
}

// TestWhatAPeerSaysOtherwiseIsNamed: two routers that can't agree are both
// Active, or silently wrong; Holdfast says which field it is, and when it is
// over.
func TestWhatAPeerSaysOtherwiseIsNamed(t *testing.T) {
	for _, test := range []struct {
		field  string
		way    settings
		theirs func(*routers.Options)
	}{
		{"interval", settings{version: 2, interval: time.Second}, func(o *routers.Options) { o.Interval = 2 * time.Second }},
		{"password", settings{version: 2, interval: time.Second, password: "sesame77"}, func(o *routers.Options) { o.Password = "mellon88" }},
		{"authentication", settings{version: 2, interval: time.Second, password: "sesame77"}, func(o *routers.Options) { o.Password = "" }},
		{"version", settings{version: 3, interval: time.Second}, func(o *routers.Options) { o.Version = 2 }},
		{"addresses", settings{version: 3, interval: 100 * time.Millisecond}, func(o *routers.Options) { o.More = 1 }},
	} {
		t.Run(test.field, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, test.way.options(routers.Holdfast, routers.Keepalived))
			ours, theirs := b.Members[0], b.Members[1]
			right := theirs.Options
			// It speaks only while it is Active: with a priority that makes it so.
			theirs.Options.Priorities, right.Priorities = []int{100, 250}, []int{100, 250}
			ours.Options.Priorities = right.Priorities
			test.theirs(&theirs.Options)
			b.must(ours.Start())
			b.must(theirs.Start())
			line := b.awaitLog(ours, 0, "condition", "disagreement", test.field, "router2")
			for _, secret := range []string{"sesame77", "mellon88"} {
				if test.way.password != "" && lineWith(ours.Log(), secret) != "" {
					t.Errorf("the log has a password: %s", line)
				}
			}
			ctx, cancel := b.context()
			defer cancel()
			b.must(theirs.Stop(ctx))
			theirs.Options = right
			skip := len(ours.Log())
			b.must(theirs.Start())
			b.awaitLog(ours, skip, "condition ended", "disagreement")
		})
	}
}

// Package vrrp_test puts Holdfast's virtual routers beside Debian's keepalived
// and takes things away from both. Who is Active is read off the wire.
package vrrp_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"holdfast/lab"
	"holdfast/lab/keepalived"
	"holdfast/lab/routers"
	"holdfast/lab/site"
	"holdfast/lab/stall"
	"holdfast/lab/wire"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	if lab.Init() {
		return
	}
	os.Exit(site.RunTests(m, &binary))
}

// measuring is how far the kernel's time stamps of two hosts' frames may be
// off on a machine that does other things too.
const measuring = 10 * time.Millisecond

// bench is a site under test.
type bench struct {
	*routers.Site
	t       *testing.T
	machine *stall.Watch
}

func newBench(t *testing.T, o routers.Options) *bench {
	t.Helper()
	return newBenchOf(t, o, binary)
}

// newBenchOf is newBench with another holdfast.
func newBenchOf(t *testing.T, o routers.Options, program string) *bench {
	t.Helper()
	keepalived.Require(t)
	o.Binary = program
	o.Lab = func(o lab.Options) (*lab.Lab, error) { return lab.NewTest(t, o), nil }
	s, err := routers.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			var logs strings.Builder
			_ = s.Lab.DumpLogs(&logs, 60)
			t.Log(logs.String())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &bench{s, t, stall.Test(t, "")}
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// context bounds a wait for something that takes some intervals.
func (b *bench) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.t.Context(), time.Minute+10*b.Options.Interval)
}

// start starts all members and waits until the first alone is Active and the
// others listen: one whose process comes late must not be missed by what follows.
func (b *bench) start() {
	b.t.Helper()
	since := time.Now()
	for _, m := range b.Members {
		b.must(m.Start())
	}
	for _, m := range b.Members {
		b.awaitListening(m, 0)
	}
	b.awaitSole(0, since)
}

// awaitListening waits until a member that was started hears others, by its log
// after the first skip bytes.
func (b *bench) awaitListening(m *routers.Member, skip int) {
	b.t.Helper()
	words := "msg=ready"
	if m.Kind == routers.Keepalived {
		words = "Entering BACKUP STATE"
	}
	b.awaitLog(m, skip, words)
}

func (b *bench) awaitSole(member int, since time.Time) wire.Event {
	b.t.Helper()
	ctx, cancel := b.context()
	defer cancel()
	e, err := b.AwaitSole(ctx, b.Members[member], 0, since)
	b.must(err)
	return e
}

// awaitLog waits until a member's log has a line with all of the words, after
// the first skip bytes.
func (b *bench) awaitLog(m *routers.Member, skip int, words ...string) string {
	b.t.Helper()
	ctx, cancel := b.context()
	defer cancel()
	var found string
	b.must(site.Poll(ctx, func(context.Context) error {
		if found = lineWith(m.Log()[skip:], words...); found == "" {
			return fmt.Errorf("the log of %s has no line with %q", m, words)
		}
		return nil
	}))
	return found
}

func lineWith(text string, words ...string) string {
	for line := range strings.Lines(text) {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, word)
		}
		if all {
			return line
		}
	}
	return ""
}

// actives are the spans of adverts so far.
func (b *bench) actives() []wire.Span { return wire.Actives(b.Watch.Events(), b.Router(0)) }

// recovery is what it takes, at the end of a stall, to do what was due in it.
const recovery = 50 * time.Millisecond

// stalls are the times in which the machine stood still, from a time on. One who
// was not heard for three intervals is replaced, whatever kept it.
func (b *bench) stalls(since time.Time) []wire.Window {
	var list []wire.Window
	for _, s := range b.machine.Spans(since, time.Now()) {
		list = append(list, wire.Window{From: s.From, To: s.To.Add(recovery)})
	}
	return wire.Merge(list...)
}

// excused tells whether another may have become Active at a time since the
// machine stood still: for half of what a Backup waits, in the time that it did.
func (b *bench) excused(at time.Time) bool {
	patience := 4 * b.Options.Interval // three, and Skew_Time is one at most
	return b.machine.Within(at.Add(-patience), at) >= patience/2
}

// neverTwo fails the test when two were Active for more than one advert, apart
// from partitions and the machine's stalls. What two keepaliveds do to each other
// is told, and isn't our failure; nor is one advert that a stalled process sent
// late.
func (b *bench) neverTwo(excused ...wire.Window) {
	b.t.Helper()
	spans := b.actives()
	excused = wire.Merge(append(excused, b.stalls(time.Time{})...)...)
	for _, o := range wire.Overlaps(spans, b.Options.Interval+measuring, excused...) {
		one, other := b.member(o.A.By), b.member(o.B.By)
		tell := b.t.Errorf
		if one.Kind == routers.Keepalived && other.Kind == routers.Keepalived || o.Times <= 1 {
			tell = b.t.Logf
		}
		tell("two Actives, %s and %s, %v", one, other, o)
		b.story(o.B.Start)
	}
	if b.t.Failed() {
		for _, s := range spans {
			b.t.Logf("%s: %v", b.member(s.By), s)
		}
	}
}

// story logs the adverts around a moment.
func (b *bench) story(at time.Time) {
	b.t.Helper()
	for _, e := range b.Watch.Events() {
		if b.Router(0).Is(e) && e.At.Sub(at).Abs() < 5*b.Options.Interval {
			b.t.Logf("%s advert of %s, priority %d", e.At.Format("05.000000"), b.member(e.From), e.Priority)
		}
	}
}

// member is the one with a hardware address.
func (b *bench) member(mac wire.MAC) *routers.Member {
	b.t.Helper()
	for _, m := range b.Members {
		if m.MAC == mac {
			return m
		}
	}
	b.t.Fatalf("no member has the address %s", mac)
	return nil
}

// holds waits until a member's kernel has the first router's address, or has
// it no longer.
func (b *bench) holds(m *routers.Member, want bool) time.Duration {
	b.t.Helper()
	ctx, cancel := b.context()
	defer cancel()
	began := time.Now()
	b.must(site.Poll(ctx, func(context.Context) error {
		has, err := m.Holds(0)
		if err == nil && has != want {
			err = errors.New(map[bool]string{true: "the address is not there", false: "the address is still there"}[want])
		}
		return err
	}))
	return time.Since(began)
}

// metrics reads the metrics of a member that runs Holdfast.
func (b *bench) metrics(m *routers.Member) string {
	b.t.Helper()
	ctx, cancel := b.context()
	defer cancel()
	text, err := m.Host.Run(ctx, "curl", "--silent", "--fail", "--unix-socket", "/run/holdfast/net.sock", "http://localhost/metrics")
	b.must(err)
	return text
}

package vrrp_test

import (
	"testing"
	"time"

	"holdfast/lab/routers"
	"holdfast/lab/site"
	"holdfast/lab/wire"
)

// TestAClockThatIsSetByADayIsNotNoticed: an Active and a Backup whose wall
// clock begins in 1970 and jumps by a day while they run. Nothing but the
// monotonic clock counts.
func TestAClockThatIsSetByADayIsNotNoticed(t *testing.T) {
	clockless, err := site.Build1970(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := settings{version: 3, interval: 100 * time.Millisecond}.options(routers.Holdfast, routers.Holdfast)
	b := newBenchOf(t, o, clockless)
	b.start()
	settled := time.Now()
	ctx, cancel := b.context()
	defer cancel()
	after := settled.Add(site.ClockJump + 2*time.Second)
	_, err = b.Watch.Await(ctx, after, "adverts after the jump", func(e wire.Event) bool { return b.Router(0).Is(e) })
	b.must(err)
	if text := b.Members[0].Log(); lineWith(text, "time=1970-01-01") == "" {
		t.Error("the clock did not begin in 1970")
	}
	last := settled
	for _, e := range b.Watch.Since(settled) {
		if !b.Router(0).Is(e) {
			continue
		}
		if e.From != b.Members[0].MAC {
			tell := t.Errorf
			if b.excused(e.At) {
				tell = t.Logf
			}
			tell("another advertised: %v", e)
		}
		b.machine.Judge(t, "the next advert", 3*o.Interval, last, e.At)
		last = e.At
	}
}

package heap

import (
	"testing"
	"time"
)

// process is a process in virtual time whose collector does what the runtime's
// does: it collects at the goal that the last collection set.
type process struct {
	pacer
	now   time.Time
	u     usage
	heap  float64 // bytes
	goal  float64
	runs  int // collections
	most  float64
	sets  int // times that the percentage was changed
	grows func(live float64) float64
}

func newProcess(live, roots uint64) *process {
	p := &process{pacer: pacer{percent: usual}, now: time.Unix(1e9, 0), u: usage{live: live, roots: roots}, heap: float64(live)}
	p.goal = float64(goal(p.u, p.percent))
	p.grows = func(live float64) float64 { return live }
	return p
}

// run lets it allocate so many bytes a second for a while, in steps of 10 ms.
func (p *process) run(during time.Duration, rate float64) {
	next := p.now
	for end := p.now.Add(during); p.now.Before(end); p.now = p.now.Add(10 * time.Millisecond) {
		p.heap += rate / 100
		p.u.allocated += uint64(rate / 100)
		p.most = max(p.most, p.heap)
		if p.heap >= p.goal {
			p.runs++
			p.u.live = uint64(p.grows(float64(p.u.live)))
			p.heap, p.goal = float64(p.u.live), float64(goal(p.u, p.percent))
		}
		if p.now.Before(next) {
			continue
		}
		next = p.now.Add(lookEvery)
		if was := p.percent; p.next(p.now, p.u) != was {
			p.sets++
			p.goal = float64(goal(p.u, p.percent))
		}
		if p.raised {
			next = p.now.Add(followEvery)
		}
	}
}

const mib = 1 << 20

// Without the floor ten mebibytes are collected ten times a second.
func TestABusyHeapIsCollectedAtTheFloor(t *testing.T) {
	p := newProcess(10*mib, 1*mib)
	p.run(3*time.Second, 100*mib)
	p.runs, p.most, p.sets = 0, 0, 0
	p.run(10*time.Second, 100*mib)
	if p.runs > 22 {
		t.Errorf("%d collections in 10 s, want one in half a second", p.runs)
	}
	if p.most > 1.12*Floor {
		t.Errorf("the heap was %.0f MiB, want about %d", p.most/mib, Floor/mib)
	}
	if p.sets != 0 {
		t.Errorf("the percentage was changed %d times for a heap that stays as it is", p.sets)
	}
}

// An agent of which nobody asks anything must not take more memory than before: a
// floor that holds always would be full after a minute.
func TestACalmHeapIsCollectedAsBefore(t *testing.T) {
	p := newProcess(10*mib, 1*mib)
	p.run(10*time.Minute, 2*mib)
	if p.percent != usual || p.most > 22*mib {
		t.Errorf("percentage %d, %.0f MiB, want %d and at most 22", p.percent, p.most/mib, usual)
	}
}

// A burst, such as one large answer, is no load.
func TestABurstRaisesNothing(t *testing.T) {
	p := newProcess(10*mib, 1*mib)
	p.run(5*time.Second, 1*mib)
	p.run(20*time.Millisecond, 800*mib)
	p.run(5*time.Second, 1*mib)
	if p.sets != 0 || p.raised {
		t.Errorf("the percentage was changed %d times, raised %v", p.sets, p.raised)
	}
}

// An agent that starts allocates much in its first second, and has little to scan.
func TestASmallHeapRaisesNothing(t *testing.T) {
	p := newProcess(1*mib, mib/2)
	p.run(5*time.Second, 25*mib)
	if p.sets != 0 || p.most > 5*mib {
		t.Errorf("the percentage was changed %d times, the heap was %.0f MiB", p.sets, p.most/mib)
	}
}

func TestMemoryGoesBackWhenTheLoadEnds(t *testing.T) {
	p := newProcess(10*mib, 1*mib)
	p.run(10*time.Second, 100*mib)
	if !p.raised {
		t.Fatal("it was not raised under load")
	}
	p.run(2*time.Second, 1*mib)
	if !p.raised {
		t.Error("a pause of two seconds ended it: load that comes in waves would change it all the time")
	}
	p.run(8*time.Second, 1*mib)
	if p.raised || p.percent != usual || p.heap > 22*mib {
		t.Errorf("raised %v, percentage %d, %.0f MiB, want what was before the load", p.raised, p.percent, p.heap/mib)
	}
}

// A percentage that is right for eight mebibytes has sixty-four of them grow to
// half a gigabyte.
func TestAHeapThatGrowsDoesNotGrowByThePercentage(t *testing.T) {
	p := newProcess(8*mib, 1*mib)
	p.run(3*time.Second, 100*mib)
	p.grows = func(live float64) float64 { return min(100*mib, live*1.5) }
	p.run(30*time.Second, 100*mib)
	if p.u.live != 100*mib || p.percent != usual {
		t.Errorf("%d MiB live, percentage %d; want 100 and Go's own", p.u.live/mib, p.percent)
	}
	if p.most > 210*mib {
		t.Errorf("the heap was %.0f MiB, where Go's own percentage makes 201", p.most/mib)
	}
}

func TestThePercentageOfAnEmptyHeapIsBounded(t *testing.T) {
	for _, u := range []usage{{}, {live: 1}, {live: 100 << 10, roots: 100 << 10}} {
		if got := goal(u, percentFor(u)); got > Floor+Floor/20 {
			t.Errorf("%+v: a goal of %d MiB", u, got/mib)
		}
	}
}

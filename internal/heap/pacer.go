package heap

import "time"

const (
	// usual is Go's own percentage: collect when the heap has doubled.
	usual = 100
	// minimum is the heap below which Go does not collect at the usual percentage
	// (runtime/mgcpacer.go, heapMinimum); it grows with the percentage.
	minimum = 4 << 20
	// most is the percentage by which minimum alone is the floor.
	most = usual * Floor / minimum

	// A process is busy when the collector would scan so many bytes a second at the
	// usual percentage, which takes some hundredths of a processor, and calm again
	// when they are fewer than seldom for so long.
	often   = 20 << 20
	seldom  = 5 << 20
	calmFor = 3 * time.Second

	measured = 900 * time.Millisecond // over at least so long, or a burst would count as load
)

// pacer decides the percentage. It has no clock and no memory but its fields.
type pacer struct {
	percent int // in force
	raised  bool

	begun time.Time // of the measurement
	from  uint64    // what had been allocated then
	calm  time.Time // since when it is; zero: it is not
}

// next gives the percentage from now on.
func (p *pacer) next(now time.Time, u usage) int {
	p.judge(now, u)
	switch want := percentFor(u); {
	case !p.raised || want <= usual:
		p.percent = usual
	case tooFar(goal(u, p.percent)):
		p.percent = want
	}
	return p.percent
}

// judge tells whether the process is busy.
func (p *pacer) judge(now time.Time, u usage) {
	took := now.Sub(p.begun)
	if !p.begun.IsZero() && took < measured {
		return
	}
	first, allocated := p.begun.IsZero(), u.allocated-p.from
	p.begun, p.from = now, u.allocated
	if first || u.live == 0 { // it was not collected once
		return
	}
	collections := float64(allocated) / float64(goal(u, usual)-u.live)
	scanned := collections * float64(u.live+u.roots) / took.Seconds()
	switch {
	case scanned >= often:
		p.raised, p.calm = true, time.Time{}
	case scanned >= seldom:
		p.calm = time.Time{}
	case p.calm.IsZero():
		p.calm = now
	case now.Sub(p.calm) >= calmFor:
		p.raised = false
	}
}

// goal is the heap at which Go collects next (runtime/mgcpacer.go, commit).
func goal(u usage, percent int) uint64 {
	return max(u.live+(u.live+u.roots)*uint64(percent)/100, minimum*uint64(percent)/usual)
}

// tooFar tells whether a goal should be brought to the floor.
func tooFar(goal uint64) bool { return goal < Floor-Floor/10 || goal > Floor+Floor/10 }

// percentFor is the percentage by which the heap is collected at the floor.
func percentFor(u usage) int {
	if u.live >= Floor {
		return usual
	}
	return int(min(most, (Floor-u.live)*100/max(1, u.live+u.roots)))
}

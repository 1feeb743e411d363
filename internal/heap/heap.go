// Package heap has the garbage collector of this process wait for more while
// the process is busy.
//
// Go collects when the heap has doubled. A store of a few megabytes that is
// written to has doubled many times a second, and is marked from end to end each
// time: a third of what writes cost, and their longest pauses. With a floor below
// which the heap need not be collected it happens a few times a second. A floor
// that always held would be memory that every idle node has for nothing, so that
// it holds while much is allocated, and the memory goes back when that ends.
package heap

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Floor is the size of the heap in bytes below which a busy process does not
// collect. A heap that Go would let grow further by itself does so.
const Floor = 64 << 20

const (
	lookEvery = time.Second
	// The collector takes up a percentage, which is right for the live heap of one
	// moment only: while it is raised that is looked at more often, or a heap that
	// grows would go far beyond the floor.
	followEvery = 100 * time.Millisecond
)

// Task is a run.Task. There should be one in a process: the setting is the
// process's.
type Task struct{}

// New makes the task; Run starts it.
func New() *Task { return &Task{} }

// String names the task.
func (*Task) String() string { return "heap" }

// Run follows the heap until ctx ends, and leaves the collector's percentage as it
// was. Who sets one, by GOGC say, has his reasons: then nothing is changed.
// GOMEMLIMIT stays in force.
func (*Task) Run(ctx context.Context, ready func()) error {
	ready()
	if u := read(); u.percent != usual || os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	defer debug.SetGCPercent(usual)
	p := pacer{percent: usual}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		was := p.percent
		is := p.next(time.Now(), read())
		if is != was {
			debug.SetGCPercent(is)
		}
		if is != was && !p.raised {
			debug.FreeOSMemory() // else it would go when the heap has doubled, which takes a calm process minutes
		}
		if p.raised {
			timer.Reset(followEvery)
		} else {
			timer.Reset(lookEvery)
		}
	}
}

// usage is what the runtime says of the heap. Sizes are in bytes.
type usage struct {
	allocated uint64 // since the start of the process
	live      uint64 // at the last collection
	roots     uint64 // stacks and globals, which the collector scans too
	percent   uint64 // as it is set
}

// read does not stop the world, and takes some microseconds.
func read() usage {
	samples := [...]metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}, {Name: "/gc/gogc:percent"},
	}
	metrics.Read(samples[:])
	var n [len(samples)]uint64
	for i, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 { // else a later Go has no such metric: nothing is ever raised
			n[i] = s.Value.Uint64()
		}
	}
	return usage{allocated: n[0], live: n[1], roots: n[2] + n[3], percent: n[4]}
}

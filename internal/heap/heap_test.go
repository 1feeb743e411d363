package heap

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

// held is how many bytes the heap takes of the machine, in use or not.
func held() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() + samples[1].Value.Uint64() + samples[2].Value.Uint64()
}

// goalNow is the heap at which this process is collected next.
func goalNow() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// allocate makes 200 MB of garbage a second, however seldom it gets to run, beside
// 8 MiB that stay, until done says so, or for too long.
func allocate(done func() bool) {
	kept := make([][]byte, 512)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	last, end := time.Now(), time.Now().Add(30*time.Second)
	for i := 0; !done() && time.Now().Before(end); <-tick.C {
		now := time.Now()
		for range int(min(now.Sub(last), time.Second) * 200e6 / time.Second / (16 << 10)) {
			kept[i%len(kept)] = make([]byte, 16<<10)
			i++
		}
		last = now
	}
	runtime.KeepAlive(kept)
}

// start runs the task until the test ends or end is called.
func start(t *testing.T) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- New().Run(ctx, func() { close(ready) }) }()
	<-ready
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// The runtime itself, whose metrics could get other names: nothing would be
// raised then.
func TestTheRuntimeTakesUpTheFloor(t *testing.T) {
	t.Setenv("GOGC", "") // whoever runs this may have set one
	defer debug.SetGCPercent(debug.SetGCPercent(usual))
	end := start(t)
	var goal uint64
	reached := false
	allocate(func() bool { // more than one look: a collection that was late counts garbage as live, until the next
		goal = goalNow() // which such a collection may have brought there by itself: the task has not raised it then
		reached = goal > Floor*8/10 && goal < Floor*12/10 && read().percent != usual
		return reached
	})
	if !reached {
		t.Errorf("the goal of a busy heap is %d MiB, want about %d", goal/mib, Floor/mib)
	}
	ended := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for read().percent != usual && time.Now().Before(ended) {
		<-tick.C
	}
	if got := read().percent; got != usual {
		t.Errorf("the percentage is %d when the load has ended, want %d", got, usual)
	}
	for held() > Floor/4 && time.Now().Before(ended) {
		<-tick.C
	}
	if got := held(); got > Floor/4 { // it allocates no more: nothing else collects
		t.Errorf("the heap has %d MiB when the load has ended, want the few that are in use", got/mib)
	}
	end()
}

func TestThePercentageIsGivenBackAtTheEnd(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(usual))
	end := start(t)
	raised := false
	allocate(func() bool { raised = read().percent != usual; return raised })
	if !raised {
		t.Error("the percentage was never raised")
	}
	end()
	if got := read().percent; got != usual {
		t.Errorf("the percentage is %d after the task, want %d", got, usual)
	}
}

// Who starts the agent with GOGC=50 has little memory.
func TestAPercentageThatSomebodySetStays(t *testing.T) {
	was := debug.SetGCPercent(50)
	defer debug.SetGCPercent(was)
	end := start(t)
	began := time.Now()
	allocate(func() bool { return time.Since(began) > 1500*time.Millisecond })
	if got := read().percent; got != 50 {
		t.Errorf("the percentage is %d, want the 50 that were set", got)
	}
	end()
	if got := read().percent; got != 50 {
		t.Errorf("the percentage is %d after the task, want the 50 that were set", got)
	}
}

// Nor is Go's own percentage raised for who asked for it by name. It fails where
// only the percentage is looked at.
func TestThePercentageOfTheEnvironmentStaysThoughItIsTheUsual(t *testing.T) {
	t.Setenv("GOGC", "100")
	end := start(t)
	began := time.Now()
	allocate(func() bool { return time.Since(began) > 2500*time.Millisecond || read().percent != usual })
	if got := read().percent; got != usual {
		t.Errorf("the percentage is %d", got)
	}
	end()
}

package discipline

import (
	"math"
	"testing"
)

func TestNothingIsSteppedWhileStepsAreHeldUnlessForced(t *testing.T) {
	w := newWorld(t, 1, lan(), lan(), lan())
	w.clock = 0.5
	w.start(Config{})
	w.core.HoldSteps(true)
	w.run(7)
	if len(w.steps) > 0 || w.core.Held() == 0 || w.fast == 0 {
		t.Fatalf("steps %v, held %v, slewing %v: want the half second slewed, and said", w.steps, w.core.Held(), w.fast)
	}
	w.run(30 * 60)
	if len(w.steps) > 0 || math.Abs(w.clock) > 100e-6 || w.core.Held() != 0 {
		t.Errorf("steps %v, off by %v, held %v half an hour later", w.steps, w.clock, w.core.Held())
	}
	w.clock += 5
	w.core.AllowStep(false)
	w.wake = w.now
	w.run(w.now + 10)
	if len(w.steps) > 0 {
		t.Errorf("stepped by %v while held", w.steps)
	}
	w.core.AllowStep(true)
	w.wake = w.now
	w.run(w.now + 10)
	if len(w.steps) != 1 || math.Abs(w.clock) > 100e-6 {
		t.Errorf("forced: steps %v, off by %v", w.steps, w.clock)
	}
}

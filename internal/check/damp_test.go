package check

import (
	"math/rand/v2"
	"testing"
	"time"

	"holdfast/internal/state"
)

// flapping has a check pass and fail, a second each, n times, and returns the
// machine and the time.
func flapping(n int, half time.Duration) (*Machine, time.Time) {
	now := time.Unix(0, 0)
	m := NewMachine(Definition{ID: "c", Damp: half}, now)
	for range n {
		m.Step(Result{Status: state.Passing, At: now})
		now = now.Add(time.Second)
		m.Step(Result{Status: state.Critical, At: now})
		now = now.Add(time.Second)
	}
	return m, now
}

func TestAFlappingCheckIsHeldUntilItStaysGood(t *testing.T) {
	m, now := flapping(2, 5*time.Minute)
	if r, _ := m.Step(Result{Status: state.Passing, At: now}); r.Status != state.Passing {
		t.Fatalf("held after two falls: %+v", r)
	}
	m, now = flapping(4, 5*time.Minute)
	r, _ := m.Step(Result{Status: state.Passing, Output: "ok", At: now})
	if m.Status() != state.Critical || r.Transition {
		t.Fatalf("not held after four falls: %s, %+v", m.Status(), r)
	}
	held := now
	for m.Status() == state.Critical {
		now = now.Add(10 * time.Second)
		r, _ = m.Step(Result{Status: state.Passing, Output: "ok", At: now})
		if now.Sub(held) > 15*time.Minute {
			t.Fatal("held for more than three halvings")
		}
	}
	if !r.Transition || r.Output != "ok" {
		t.Errorf("the end is not told: %+v", r)
	}
	// Four points halve to one in two halvings.
	if took := now.Sub(held); took < 9*time.Minute || took > 10*time.Minute+10*time.Second {
		t.Errorf("held for %s, want 10 minutes", took)
	}
}

func TestHeldOutputSaysWhy(t *testing.T) {
	m, now := flapping(4, 5*time.Minute)
	r, ok := m.Step(Result{Status: state.Passing, Output: "HTTP 200", At: now.Add(OutputInterval)})
	if !ok || r.Status != state.Critical || r.Output != "held: it fell 4 times in short; good again when it stays good: HTTP 200" {
		t.Errorf("report %+v, %t", r, ok)
	}
}

// A check that goes on falling while it is held stays held, and is free again
// three halvings after the last fall, however often it fell.
func TestFallsCountWhileHeld(t *testing.T) {
	m, now := flapping(500, time.Minute)
	last := now
	for m.Status() == state.Critical {
		now = now.Add(time.Second)
		m.Step(Result{Status: state.Passing, At: now})
		if now.Sub(last) > 3*time.Minute+time.Second {
			t.Fatal("held for more than three halvings")
		}
	}
	if now.Sub(last) < 2*time.Minute {
		t.Errorf("free after %s though it fell every two seconds", now.Sub(last))
	}
}

// Whatever happens, damping never makes a bad check good, nor delays bad news.
func TestDampingOnlyDelaysGoodNews(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		now := time.Unix(0, 0)
		plain := NewMachine(Definition{ID: "c", Rise: 2, Fall: 2}, now)
		damped := NewMachine(Definition{ID: "c", Rise: 2, Fall: 2, Damp: 10 * time.Second}, now)
		for step := range 300 {
			r := Result{Status: state.Passing, At: now}
			if random.IntN(3) == 0 {
				r.Status = state.Critical
			}
			plain.Step(r)
			damped.Step(r)
			if damped.Status() != state.Critical && damped.Status() != plain.Status() {
				t.Fatalf("seed %d, step %d: %s, but it is %s", seed, step, damped.Status(), plain.Status())
			}
			now = now.Add(time.Duration(random.IntN(5000)-500) * time.Millisecond) // clocks go back, too
		}
		for range 100 {
			now = now.Add(time.Second)
			damped.Step(Result{Status: state.Passing, At: now})
		}
		if damped.Status() != state.Passing {
			t.Fatalf("seed %d: held for ever", seed)
		}
	}
}

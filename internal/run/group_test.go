package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/health"
)

func newGroup() (*Group, *health.Board) {
	board := health.NewBoard(time.Now, nil, nil)
	return &Group{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Board: board}, board
}

func wellBehaved(name string) Task {
	return Func(name, func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		return nil
	})
}

func TestFailedTaskIsRestartedAloneAndRaisesACondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, board := newGroup()
		var runs, neighbour atomic.Int32
		failing := Func("failing", func(ctx context.Context, ready func()) error {
			switch runs.Add(1) {
			case 1:
				return errors.New("disk on fire")
			case 2:
				panic("at the disco")
			}
			ready()
			<-ctx.Done()
			return nil
		})
		steady := Func("steady", func(ctx context.Context, ready func()) error {
			neighbour.Add(1)
			ready()
			<-ctx.Done()
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		ready := false
		go func() { done <- group.Run(ctx, func() { ready = true }, failing, steady) }()

		synctest.Wait()
		if c := board.Conditions(); len(c) != 1 || c[0].Name != "task.failing" || !strings.Contains(c[0].Message, "disk on fire") {
			t.Errorf("conditions after the failure: %+v", c)
		}
		if ready {
			t.Error("the group says it is ready while a task is not")
		}
		time.Sleep(minBackoff)
		synctest.Wait()
		if c := board.Conditions(); len(c) != 1 || !strings.Contains(c[0].Message, "at the disco") {
			t.Errorf("conditions after the panic: %+v", c)
		}
		time.Sleep(2 * minBackoff)
		synctest.Wait()
		if c := board.Conditions(); len(c) != 0 {
			t.Errorf("the condition stays although the task is ready: %+v", c)
		}
		if !ready {
			t.Error("all tasks are ready, the group is not")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := neighbour.Load(); n != 1 {
			t.Errorf("the healthy neighbour was started %d times", n)
		}
	})
}

// TestWhoIsLateIsNamed: from three seconds after the start, until all were ready.
// A task that is ready in time, or again after a failure, is not told.
func TestWhoIsLateIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, _ := newGroup()
		var told []string
		started := time.Now()
		group.Late = func(waiting []string) {
			told = append(told, fmt.Sprint(time.Since(started), waiting))
		}
		after := func(name string, d time.Duration) Task {
			return Func(name, func(ctx context.Context, ready func()) error {
				if time.Since(started) < d {
					return errors.New("the address is in use")
				}
				ready()
				if time.Since(started) < time.Minute {
					return errors.New("it was well, and is no more")
				}
				<-ctx.Done()
				return nil
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		ready := time.Duration(0)
		go func() {
			done <- group.Run(ctx, func() { ready = time.Since(started) }, wellBehaved("a"), after("b", 10*time.Second), after("c", 2*time.Second), after("d", 5*time.Second))
		}()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// Starts are 0.1, 0.3, 0.7, 1.5, 3.1, 6.3 and 12.7 s after the first.
		if got, want := fmt.Sprint(told), "[3s [b c d] 3.1s [b d] 6.3s [b]]"; got != want {
			t.Errorf("told %s, want %s", got, want)
		}
		if ready != 12700*time.Millisecond {
			t.Errorf("ready after %v", ready)
		}
	})
}

// TestWhyOneIsLateIsToldWhenItIsKnown: a task that fails for the first time after it
// was named as late has a reason from then on. It fails where nobody is told of that.
func TestWhyOneIsLateIsToldWhenItIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, board := newGroup()
		var told []string
		started := time.Now()
		group.Late = func(waiting []string) {
			told = append(told, fmt.Sprint(time.Since(started), waiting, len(board.Conditions())))
		}
		slow := Func("slow", func(ctx context.Context, _ func()) error {
			select {
			case <-time.After(4 * time.Second):
				return errors.New("the address is in use")
			case <-ctx.Done():
				return nil
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- group.Run(ctx, nil, wellBehaved("a"), slow) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got, want := fmt.Sprint(told), "[3s [slow] 0 4s [slow] 1]"; got != want {
			t.Errorf("told %s, want %s", got, want)
		}
	})
}

func TestTasksEndInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, _ := newGroup()
		var order []string
		task := func(name string) Task {
			return Func(name, func(ctx context.Context, ready func()) error {
				ready()
				<-ctx.Done()
				time.Sleep(time.Second) // slow to end; the others must wait for it
				order = append(order, name)
				return nil
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- group.Run(ctx, nil, task("first"), task("second"), task("third")) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(order, " "); got != "third second first" {
			t.Errorf("ended in the order %s", got)
		}
	})
}

func TestTaskThatDoesNotEndIsNamedAndHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, _ := newGroup()
		group.Grace = 3 * time.Second
		release := make(chan struct{})
		stubborn := Func("stubborn", func(_ context.Context, ready func()) error {
			ready()
			<-release
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- group.Run(ctx, nil, wellBehaved("a"), stubborn, wellBehaved("b")) }()
		synctest.Wait()
		start := time.Now()
		cancel()
		err := <-done
		if err == nil || !strings.Contains(err.Error(), "stubborn has not ended within 3s") {
			t.Errorf("error %v does not name the stubborn task", err)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("stopping took %v, not the grace of 3s", took)
		}
		close(release)
	})
}

func TestBackoffDoublesToItsCapAndStartsOverAfterASteadyRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, _ := newGroup()
		var mu sync.Mutex
		var starts []time.Time
		var steadyRun atomic.Int64 // of the next start
		task := Func("flapping", func(ctx context.Context, _ func()) error {
			mu.Lock()
			starts = append(starts, time.Now())
			mu.Unlock()
			time.Sleep(time.Duration(steadyRun.Swap(0)))
			return errors.New("again")
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- group.Run(ctx, nil, task) }()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		mu.Lock()
		last := len(starts) - 1
		if gap := starts[last].Sub(starts[last-1]); gap != maxBackoff {
			t.Errorf("the pause settled at %v, want %v", gap, maxBackoff)
		}
		if gap := starts[2].Sub(starts[1]); gap != 2*minBackoff {
			t.Errorf("the second pause is %v, want %v", gap, 2*minBackoff)
		}
		mu.Unlock()
		steadyRun.Store(int64(2 * steadyAfter))
		time.Sleep(maxBackoff + 2*steadyAfter + minBackoff)
		synctest.Wait()
		mu.Lock()
		found := false
		for i := last + 1; i < len(starts); i++ {
			found = found || starts[i].Sub(starts[i-1]) == 2*steadyAfter+minBackoff
		}
		if !found {
			t.Error("after a steady run the backoff did not start over")
		}
		mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

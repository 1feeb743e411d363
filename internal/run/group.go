package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"holdfast/internal/health"
)

// Restart policy of a Group: the pause after a failure doubles from
// minBackoff to maxBackoff, and starts over after steadyAfter without one.
const (
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 30 * time.Second
	steadyAfter = time.Minute
)

// lateAfter is for how long tasks may get ready before it is said that they do
// not.
const lateAfter = 3 * time.Second

// errEnded is what a task failed with that returned nil before it was told to end.
var errEnded = errors.New("ended without being asked to")

// Group runs tasks side by side. A task that fails or panics is restarted
// alone, with backoff, and raises the condition "task.NAME" until it is ready
// again; the others don't notice.
type Group struct {
	// Log and Board hear of failures; Board may be nil.
	Log   *slog.Logger
	Board *health.Board
	// Grace bounds the end of all tasks together. 10 s when zero.
	Grace time.Duration
	// Late (may be nil) is called on Run's goroutine with the names of the tasks
	// that were never ready, in their order: 3 s after the start when there are
	// any, and from then on each time that one of several is, or one fails for the
	// first time: the board has its reason then.
	Late func(waiting []string)
}

// Run starts the tasks in order, without waiting for one before the next, and
// calls ready (may be nil) once all of them were ready at least once. When ctx
// ends it stops them one by one in reverse order and returns nil, or an
// error that names the tasks that had not ended within Grace.
func (g *Group) Run(ctx context.Context, ready func(), tasks ...Task) error {
	first := make(chan int, len(tasks))  // the index of a task that is ready for the first time
	failed := make(chan int, len(tasks)) // and of one that failed before
	running := make([]runningTask, 0, len(tasks))
	for i, task := range tasks {
		// A task ends when its turn comes, not when ctx does.
		taskCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := runningTask{task: task, cancel: cancel, done: make(chan struct{})}
		go func() {
			defer close(r.done)
			g.supervise(taskCtx, task, sync.OnceFunc(func() { first <- i }), sync.OnceFunc(func() { failed <- i }))
		}()
		running = append(running, r)
	}
	if g.await(ctx, tasks, first, failed) {
		if ready != nil {
			ready()
		}
		<-ctx.Done()
	}
	return g.stop(running)
}

// await waits until all tasks were ready, and tells who is late; false: ctx
// ended before.
func (g *Group) await(ctx context.Context, tasks []Task, first, failed <-chan int) bool {
	ready := make([]bool, len(tasks))
	timer := time.NewTimer(lateAfter)
	defer timer.Stop()
	late := false
	for waiting := names(tasks, ready); len(waiting) > 0; waiting = names(tasks, ready) {
		select {
		case i := <-first:
			ready[i] = true
		case i := <-failed:
			if ready[i] {
				continue
			}
		case <-timer.C:
			late = true
		case <-ctx.Done():
			return false
		}
		if waiting = names(tasks, ready); late && len(waiting) > 0 && g.Late != nil {
			g.Late(waiting)
		}
	}
	return true
}

// names are those of the tasks that are not ready.
func names(tasks []Task, ready []bool) (list []string) {
	for i, task := range tasks {
		if !ready[i] {
			list = append(list, task.String())
		}
	}
	return list
}

type runningTask struct {
	task   Task
	cancel context.CancelFunc
	done   chan struct{}
}

func (g *Group) stop(running []runningTask) error {
	grace := g.Grace
	if grace == 0 {
		grace = 10 * time.Second
	}
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	expired := false
	var late []error
	for i := len(running) - 1; i >= 0; i-- {
		r := running[i]
		r.cancel()
		if !expired {
			select {
			case <-r.done:
				continue
			case <-deadline.C:
				expired = true
			}
		}
		select {
		case <-r.done:
		default:
			late = append(late, fmt.Errorf("run: %s has not ended within %v", r.task, grace))
		}
	}
	return errors.Join(late...)
}

// supervise runs one task again and again until ctx ends. firstReady is
// called when the task is ready for the first time, or when it ends for good;
// firstFailure when it failed for the first time and the board has the reason.
func (g *Group) supervise(ctx context.Context, task Task, firstReady, firstFailure func()) {
	defer firstReady()
	condition := "task." + task.String()
	backoff := minBackoff
	for {
		started := time.Now()
		err := protect(ctx, task, func() {
			g.Board.Clear(condition)
			g.Log.Debug("task is ready", "task", task.String(), "after", time.Since(started))
			firstReady()
		})
		if ctx.Err() != nil {
			if err != nil {
				g.Log.Warn("task ended with an error", "task", task.String(), "error", err)
			}
			return
		}
		if err == nil {
			err = errEnded
		}
		if time.Since(started) > steadyAfter {
			backoff = minBackoff
		}
		g.Log.Error("task failed", "task", task.String(), "error", err, "restart_in", backoff)
		g.Board.Raise(condition, health.Error, fmt.Sprintf("%s failed and is started again by itself: %v", task, err))
		firstFailure()
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// protect turns a panic of the task's own goroutine into an error.
func protect(ctx context.Context, task Task, ready func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return task.Run(ctx, sync.OnceFunc(ready))
}

// Func makes a Task of a function.
func Func(name string, f func(ctx context.Context, ready func()) error) Task {
	return funcTask{name, f}
}

type funcTask struct {
	name string
	run  func(context.Context, func()) error
}

func (t funcTask) String() string                              { return t.name }
func (t funcTask) Run(ctx context.Context, ready func()) error { return t.run(ctx, ready) }

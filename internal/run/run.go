// Package run starts what a process is made of, keeps it running and ends it.
package run

import (
	"context"
	"fmt"
)

// Task is a long-lived part of the process. Run blocks until ctx ends (then
// it returns nil) or until it fails, and leaves nothing behind: no goroutine,
// socket or file. It calls ready once, when it serves; a task that serves at
// once calls it first thing. Run may be called again after it returned.
type Task interface {
	fmt.Stringer
	Run(ctx context.Context, ready func()) error
}

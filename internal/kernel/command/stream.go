package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Stream runs a program and gives its output to read while it runs, for as long
// as both want: it ends with ctx, with the program, or when read returns an
// error. A program whose output is not read waits. Timeout and MaxOutput say
// nothing here. The error is read's, an *ExitError, ErrNotAllowed, ctx's, or
// why the program could not be started.
func (r *Runner) Stream(ctx context.Context, c Command, read func(io.Reader) error) error {
	if len(c.Argv) == 0 {
		return errors.New("command: no program given")
	}
	path := c.Argv[0]
	if err := r.Allowed(path); err != nil {
		return fmt.Errorf("command: %w", err)
	}
	from, to, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("command: %w", err)
	}
	defer from.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		err := read(from)
		if err != nil {
			cancel(err)
		}
		ended <- err
	}()
	stderr := &bounded{max: DefaultMaxOutput}
	err = execute(ctx, build(c, to, stderr), c.starter())
	_ = to.Close()
	_ = from.SetReadDeadline(time.Now().Add(outputDelay)) // a descendant may keep it open
	failed := <-ended
	if errors.Is(failed, os.ErrDeadlineExceeded) {
		failed = nil
	}
	var exit *exec.ExitError
	switch {
	case failed != nil:
		return failed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &exit):
		return fmt.Errorf("command: %w", exitError(path, exit, stderr.kept))
	case err != nil:
		return fmt.Errorf("command: %s: %w", path, err)
	}
	return nil
}

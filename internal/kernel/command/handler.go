package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// handlerGrace is how long a handler has to end after a SIGTERM.
const handlerGrace = 10 * time.Second

// Handle runs a program that the caller's own user chose, looked up in PATH,
// without a shell, and returns its exit status: 128 and the signal's number
// when a signal ended it. Its input is given, its output is written to out and
// errOut, its environment is ours with env added. When ctx ends it gets a
// SIGTERM, and is killed 10 s later; what it started goes with it. An error
// says that it did not run.
func Handle(ctx context.Context, env []string, input []byte, out, errOut io.Writer, argv ...string) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("command: no program given")
	}
	program := exec.Command(argv[0], argv[1:]...)
	program.Env = append(os.Environ(), env...)
	program.Stdin, program.Stdout, program.Stderr = bytes.NewReader(input), out, errOut
	program.WaitDelay = outputDelay
	program.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := program.Start(); err != nil {
		return 0, fmt.Errorf("command: %w", err)
	}
	pid := program.Process.Pid
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		awaitExit(pid)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		_ = unix.Kill(-pid, unix.SIGTERM) // that there is none left is what was wanted
		select {
		case <-ended:
		case <-time.After(handlerGrace):
		}
	}
	killGroup(pid)
	<-ended
	err := program.Wait()
	if status, ok := program.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	// That it did not read its input to the end is its own affair, and so is
	// output that somebody else kept open.
	if exit := (*exec.ExitError)(nil); err == nil || errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay) || errors.Is(err, syscall.EPIPE) {
		return program.ProcessState.ExitCode(), nil
	}
	return 0, fmt.Errorf("command: %w", err)
}

package command

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// Companion is a second process of this very program. It outlives us: it is in
// a session of its own, and what tells it that we are gone is the end of its
// standard input, which no other process has a hold of.
type Companion struct {
	cmd   *exec.Cmd
	input *os.File
	done  chan struct{}
	err   error // why it ended; after done
}

// StartCompanion starts the program that runs, whatever stands at its path by
// now, with other arguments. Its environment is empty, its standard error ours.
func StartCompanion(args ...string) (*Companion, error) {
	if err := closeOnExec(); err != nil {
		return nil, fmt.Errorf("command: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("command: %w", err)
	}
	defer read.Close()
	c := &Companion{input: write, done: make(chan struct{}), cmd: &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        append([]string{os.Args[0]}, args...),
		Env:         []string{},
		Dir:         "/",
		Stdin:       read,
		Stderr:      os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}}
	if err := c.cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("command: start a second process of this program: %w", err)
	}
	go func() {
		defer close(c.done)
		c.err = c.cmd.Wait()
	}()
	return c, nil
}

// PID is its process number.
func (c *Companion) PID() int { return c.cmd.Process.Pid }

// Done is closed when it has ended.
func (c *Companion) Done() <-chan struct{} { return c.done }

// Err is why it ended; nil when it exited with status 0. Call it after Done.
func (c *Companion) Err() error { return c.err }

// Tell writes to its standard input. One that does not read is an error after
// the limit.
func (c *Companion) Tell(message []byte, limit time.Duration) error {
	if err := c.input.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := c.input.Write(message)
	return err
}

// Leave ends its standard input, and leaves it to itself.
func (c *Companion) Leave() { _ = c.input.Close() }

// Kill ends it with SIGKILL and waits for it.
func (c *Companion) Kill() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A leash is what keeps a program from running longer than its lease, though
// whoever holds the lease is stopped, killed or starved. Three processes see to
// it, two of which are enough:
//
//	holder ──► keeper ──► program      keeper and program are one process group
//
// The holder tells the keeper, a second process of this program, until when the
// program may run. The keeper kills the group at that time, or when the holder
// is gone; the holder kills it if the keeper does not; and the kernel kills the
// program when the keeper is gone.

// leashFile is the descriptor at which the keeper reads deadlines.
const leashFile = 3

// leashPoll is how often the keeper looks at the clock at least: timers sleep
// through a suspension, CLOCK_BOOTTIME does not.
const leashPoll = 100 * time.Millisecond

// Uptime is the time since the machine was started, with the time it was
// suspended (CLOCK_BOOTTIME): a clock that processes share and nobody sets.
func Uptime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(fmt.Sprintf("command: CLOCK_BOOTTIME: %v", err)) // Linux has it since 2.6.39
	}
	return time.Duration(now.Nano())
}

// Leash is the holder's end.
type Leash struct {
	keeper    *exec.Cmd
	deadlines *os.File
	done      chan struct{}

	mu     sync.Mutex
	reaped bool
}

// StartLeash starts the keeper: this program with the arguments, which must
// make it call Keep. The standard streams and the environment, with env added,
// are the program's. It runs nothing before the first Extend.
func StartLeash(env []string, args ...string) (*Leash, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("command: %w", err)
	}
	defer read.Close()
	l := &Leash{deadlines: write, done: make(chan struct{}), keeper: &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{os.Args[0]}, args...), Env: append(os.Environ(), env...),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{read},
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}}
	if err := l.keeper.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("command: start a second process of this program: %w", err)
	}
	go func() {
		defer close(l.done)
		awaitExit(l.keeper.Process.Pid)
		// What it left behind goes with it, while its number is still its own.
		l.mu.Lock()
		killGroup(l.keeper.Process.Pid)
		_ = l.keeper.Wait() // how it ended is in ProcessState
		l.reaped = true
		l.mu.Unlock()
		awaitGroup(l.keeper.Process.Pid)
	}()
	return l, nil
}

// awaitGroup blocks until no process of a killed group is left. One that waits
// for a disk may still be about to write.
func awaitGroup(group int) {
	for wait := time.Millisecond; unix.Kill(-group, 0) == nil; wait = min(2*wait, leashPoll) {
		time.Sleep(wait)
	}
}

// Extend lets the program run until the given Uptime. It does not block for
// long: a keeper that does not read is an error after a second.
func (l *Leash) Extend(until time.Duration) error {
	if err := l.deadlines.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(l.deadlines, "%d\n", int64(until))
	return err
}

// Signal sends a signal to the program and all it started.
func (l *Leash) Signal(signal syscall.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.reaped {
		_ = unix.Kill(-l.keeper.Process.Pid, signal) // that there is none left is what was wanted
	}
}

// Kill ends the program and all it started, and waits for it.
func (l *Leash) Kill() {
	l.Signal(unix.SIGKILL)
	<-l.done
}

// Done is closed when the keeper, the program and all that it started in its
// process group have ended.
func (l *Leash) Done() <-chan struct{} { return l.done }

// Code is the program's exit status after Done, 128 and the signal's number
// when a signal ended it, as a shell has it.
func (l *Leash) Code() int {
	_ = l.deadlines.Close()
	status, ok := l.keeper.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return l.keeper.ProcessState.ExitCode()
}

// Keep is the keeper: it waits for a deadline that is not over, runs the program (looked
// up in PATH) and returns its exit status. When a deadline passes, or when the
// holder is gone, it kills its whole process group, itself with it, and does
// not return.
func Keep(argv []string) (int, error) {
	if len(argv) == 0 {
		return 0, errors.New("command: no program given")
	}
	pipe := os.NewFile(leashFile, "deadlines")
	if pipe == nil || unix.Getpgrp() != os.Getpid() {
		return 0, errors.New("command: this process was not started to keep a program on a leash")
	}
	deadlines := make(chan time.Duration)
	go readDeadlines(pipe, deadlines)
	until, ok := <-deadlines
	for ok && Uptime() >= until { // this process came up slowly; the holder may have renewed since
		until, ok = <-deadlines
	}
	if !ok {
		return 0, errors.New("command: the lease was over before the program could start")
	}
	go watch(until, deadlines)
	return runLeashed(argv)
}

// runLeashed runs the program on a thread that lives as long as it does: the
// death of that thread, too, would kill it.
func runLeashed(argv []string) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := closeOnExec(); err != nil {
		return 0, err
	}
	program := exec.Command(argv[0], argv[1:]...)
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	program.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	err := program.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	case err != nil:
		return 0, fmt.Errorf("command: %w", err)
	}
	return 0, nil
}

// watch kills the group when the latest deadline passes or none can come.
func watch(until time.Duration, deadlines <-chan time.Duration) {
	for {
		left := until - Uptime()
		if left <= 0 {
			_ = unix.Kill(0, unix.SIGKILL)
		}
		select {
		case next, ok := <-deadlines:
			if !ok {
				_ = unix.Kill(0, unix.SIGKILL)
			}
			until = next
		case <-time.After(min(left, leashPoll)):
		}
	}
}

// readDeadlines passes on what the holder writes, a number of nanoseconds a
// line, and closes the channel at its end or at anything else.
func readDeadlines(from io.Reader, to chan<- time.Duration) {
	defer close(to)
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		ns, err := strconv.ParseInt(strings.TrimSpace(lines.Text()), 10, 64)
		if err != nil {
			return
		}
		to <- time.Duration(ns)
	}
}

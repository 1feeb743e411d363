package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// burnEnv tells a process that it is to burn a core, and for how long.
const burnEnv = "HOLDFAST_BENCH_BURN"

// burnInit burns when the process is there for that. A burner ends by itself.
func burnInit() bool {
	text := os.Getenv(burnEnv)
	if text == "" {
		return false
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return true
	}
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
	return true
}

// burn keeps every core busy for a time with two processes for each.
func burn(ctx context.Context, d time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the parent-death signal is bound to the thread
	defer runtime.UnlockOSThread()
	var burners []*exec.Cmd
	for range 2 * runtime.NumCPU() {
		c := exec.CommandContext(ctx, self)
		c.Env = append(os.Environ(), burnEnv+"="+d.String(), "GOMAXPROCS=1")
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err = c.Start(); err != nil {
			break
		}
		burners = append(burners, c)
	}
	for _, c := range burners {
		err = errors.Join(err, c.Wait())
	}
	return err
}

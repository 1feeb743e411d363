package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outputDelay is how long output is still read after the end of the program,
// when a descendant that left the process group keeps the pipe open.
const outputDelay = time.Second

// build makes the os/exec form: own process group, given environment only.
func build(c Command, stdout, stderr io.Writer) *exec.Cmd {
	cmd := &exec.Cmd{
		Path:        c.Argv[0],
		Args:        c.Argv,
		Env:         append([]string{}, c.Env...), // never nil: nil would mean ours
		Dir:         "/",
		Stdout:      stdout,
		Stderr:      stderr,
		WaitDelay:   outputDelay,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if c.Dir != "" {
		cmd.Dir = c.Dir
	}
	if len(c.Stdin) > 0 {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	if c.User != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID, Groups: c.User.Groups}
	}
	return cmd
}

// execute starts cmd and waits for it. The group is killed when ctx ends and
// again when the program has ended, for what it left behind; both while the
// program is not yet reaped, so that its number can't be another's.
func execute(ctx context.Context, cmd *exec.Cmd, start func(*exec.Cmd) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := closeOnExec(); err != nil {
		return err
	}
	if err := start(cmd); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		awaitExit(pid)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		killGroup(pid)
		<-ended
	}
	killGroup(pid)
	return cmd.Wait()
}

// starter starts the program with what it may have of our capabilities.
func (c Command) starter() func(*exec.Cmd) error {
	if c.Unprivileged || c.User != nil {
		return startUnprivileged
	}
	return (*exec.Cmd).Start
}

// startUnprivileged starts a program without our ambient capabilities. The
// kernel takes those away by itself only from who was root: they outlive a
// change from one ordinary user to another (capabilities(7)).
func startUnprivileged(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go func() {
		// Never unlocked: this thread has lost them for good, and ends here. The
		// program is a child of the process, and does not notice.
		runtime.LockOSThread()
		err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) { // a kernel without them
			started <- fmt.Errorf("drop capabilities: %w", err)
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

// closeOnExec marks every file of this process but the standard streams. Go
// opens its files so; this is for those that we inherited ourselves, or that a
// library opened without the flag.
func closeOnExec() error {
	const firstOther = 3
	if err := unix.CloseRange(firstOther, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark open files close-on-exec: %w", err)
	}
	return nil
}

// awaitExit blocks until the child has ended, and leaves it to be reaped.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// killGroup ends every process of the group that pid leads. That there is
// none left (ESRCH) is what was wanted.
func killGroup(pid int) { _ = unix.Kill(-pid, unix.SIGKILL) }

func exitError(path string, exit *exec.ExitError, stderr []byte) *ExitError {
	failure := &ExitError{Path: path, Code: exit.ExitCode(), Stderr: lastLine(stderr)}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		failure.Signal = status.Signal().String()
	}
	return failure
}

// checkGroups refuses a file that a group other than root's could rewrite or
// replace.
func checkGroups(path, real string) error {
	for at := real; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		mode := info.Mode()
		switch {
		case !ok || at != real && mode&os.ModeSticky != 0:
		case mode.Perm()&0o020 != 0 && stat.Gid != 0:
			return fmt.Errorf("%s: %w: group %d may write to %s (mode %#o)", path, ErrNotAllowed, stat.Gid, at, mode.Perm())
		case at != real && stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
			return fmt.Errorf("%s: %w: user %d, who is neither root nor ourselves, may replace it in %s", path, ErrNotAllowed, stat.Uid, at)
		}
		if at == "/" {
			return nil
		}
	}
}

// checkMode refuses a file that somebody else could rewrite, or that anybody
// could replace: what it says would be done with our rights.
func checkMode(path, real string) error {
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return fmt.Errorf("%s: %w: it is not a regular file", path, ErrNotAllowed)
	case mode.Perm()&0o002 != 0:
		return fmt.Errorf("%s: %w: everybody may write to it (mode %#o)", path, ErrNotAllowed, mode.Perm())
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s: %w: it belongs to user %d, who is neither root nor ourselves (user %d)", path, ErrNotAllowed, stat.Uid, os.Geteuid())
	}
	for dir := filepath.Dir(real); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if mode := info.Mode(); mode.Perm()&0o002 != 0 && mode&os.ModeSticky == 0 {
			return fmt.Errorf("%s: %w: everybody may replace it, as everybody may write to %s (mode %#o)", path, ErrNotAllowed, dir, mode.Perm())
		}
		if dir == "/" {
			return nil
		}
	}
}

// Package command runs other programs, and only those that were allowed: a
// Runner is made with the list of them. There is no shell; the environment is
// empty but for what is given; nothing is inherited but the three standard
// streams; output is bounded; and at the end of its time, or of the command
// itself, the whole process group is killed.
package command

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Bounds of a command where it says nothing.
const (
	DefaultTimeout   = 30 * time.Second
	DefaultMaxOutput = 64 << 10
)

// Errors that a caller may want to tell apart; all are wrapped with the
// command's path.
var (
	// ErrNotAllowed: the program is not on the runner's list, or can be
	// changed by others than root and the runner's own user.
	ErrNotAllowed = errors.New("not allowed")
	// ErrTimeout: the command did not end in its time and was killed.
	ErrTimeout = errors.New("time limit reached, killed")
)

// ExitError is a command that ran and failed.
type ExitError struct {
	Path   string
	Code   int    // exit status, 1–255; -1 when a signal ended it
	Signal string // "killed", "segmentation fault" ...; "" when it exited
	Stderr string // the last line that it wrote there, for messages
}

// Error gives "PATH: exit status 2: LAST LINE".
func (e *ExitError) Error() string {
	var b strings.Builder
	if e.Signal != "" {
		fmt.Fprintf(&b, "%s: ended by signal: %s", e.Path, e.Signal)
	} else {
		fmt.Fprintf(&b, "%s: exit status %d", e.Path, e.Code)
	}
	if e.Stderr != "" {
		b.WriteString(": " + e.Stderr)
	}
	return b.String()
}

// Command is one program to run.
type Command struct {
	Argv      []string      // Argv[0] is the program's absolute path
	Env       []string      // the whole environment, KEY=VALUE; empty means none at all
	Dir       string        // "/" unless said
	Stdin     []byte        // empty: /dev/null
	Timeout   time.Duration // DefaultTimeout unless said
	MaxOutput int           // bytes kept of each of stdout and stderr; DefaultMaxOutput unless said
	User      *User         // nil: the runner's own
	// Unprivileged programs get none of the capabilities that our user was given
	// (ambient ones, as by systemd); those of root are root's. Programs of another
	// User never get any.
	Unprivileged bool
}

// User is who the program runs as. Unless we are root, to become another needs
// CAP_SETUID and CAP_SETGID, and to end his program at its limit CAP_KILL.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary; none unless said
}

// Result is what a command did. Output over the bound was read and dropped.
type Result struct {
	Stdout, Stderr []byte
	Truncated      bool // stdout or stderr wrote more than was kept
	Code           int  // exit status; -1 when a signal ended it
	Took           time.Duration
}

// Runner runs the programs on its list. It may be used from any goroutine; a
// nil Runner allows nothing.
type Runner struct {
	files []string // cleaned paths
	dirs  []string // symlinks resolved, with a trailing slash
}

// New returns a runner for the given absolute paths. A path that ends with a
// slash is a directory: every program below it is allowed. A directory that
// does not exist is no error; nothing is below it.
func New(allow ...string) (*Runner, error) {
	r := &Runner{}
	for _, path := range allow {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("command: allowed program %q: must be an absolute path", path)
		}
		if !strings.HasSuffix(path, "/") {
			r.files = append(r.files, filepath.Clean(path))
			continue
		}
		dir, err := filepath.EvalSymlinks(path)
		if err != nil {
			dir = filepath.Clean(path)
		}
		r.dirs = append(r.dirs, strings.TrimSuffix(dir, "/")+"/")
	}
	return r, nil
}

// Allowed tells whether the program may be run: nil, or ErrNotAllowed with the
// reason, or why the file can't be looked at.
//
// A program that is listed itself may be a symbolic link to anywhere, as
// Debian's alternatives are. One that is below a listed directory must also
// be there once links are resolved.
func (r *Runner) Allowed(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q: %w: a program is named by its absolute path", path, ErrNotAllowed)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if !r.listed(filepath.Clean(path), real) {
		return fmt.Errorf("%s: %w: it is not on the list of programs that may be run", path, ErrNotAllowed)
	}
	return checkMode(path, real)
}

// OnlyOurs refuses, with ErrNotAllowed and the reason, a file that others than
// root and our own user could change or replace: Allowed's rule for programs, and
// no group either.
func OnlyOurs(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := checkMode(path, real); err != nil {
		return err
	}
	return checkGroups(path, real)
}

func (r *Runner) listed(path, real string) bool {
	if r == nil {
		return false
	}
	for _, file := range r.files {
		if path == file {
			return true
		}
	}
	for _, dir := range r.dirs {
		if strings.HasPrefix(real, dir) {
			return true
		}
	}
	return false
}

// Run runs a command and waits for its end, for its time limit or for the end
// of ctx, whichever comes first; it then kills what is left of its process
// group. It returns what was written even when the error is not nil: an
// *ExitError, ErrTimeout, ErrNotAllowed, ctx's error, or why the program could
// not be started.
//
// A descendant that made itself a session of its own outlives this; when it
// also keeps the output open, Run gives up reading a second after the end.
func (r *Runner) Run(ctx context.Context, c Command) (Result, error) {
	if len(c.Argv) == 0 {
		return Result{}, errors.New("command: no program given")
	}
	path := c.Argv[0]
	if err := r.Allowed(path); err != nil {
		return Result{}, fmt.Errorf("command: %w", err)
	}
	limit := c.Timeout
	if limit <= 0 {
		limit = DefaultTimeout
	}
	timed, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()

	keep := c.MaxOutput
	if keep <= 0 {
		keep = DefaultMaxOutput
	}
	stdout, stderr := &bounded{max: keep}, &bounded{max: keep}
	began := time.Now()
	err := execute(timed, build(c, stdout, stderr), c.starter())
	result := Result{
		Stdout:    stdout.kept,
		Stderr:    stderr.kept,
		Truncated: stdout.dropped || stderr.dropped,
		Took:      time.Since(began),
	}
	var exit *exec.ExitError
	switch {
	case timed.Err() != nil && err != nil:
		result.Code = -1
		if cause := context.Cause(timed); errors.Is(cause, ErrTimeout) {
			return result, fmt.Errorf("command: %s: %w (limit %s)", path, ErrTimeout, limit)
		}
		return result, fmt.Errorf("command: %s: %w", path, context.Cause(timed))
	case errors.As(err, &exit):
		failure := exitError(path, exit, stderr.kept)
		result.Code = failure.Code
		return result, fmt.Errorf("command: %w", failure)
	case errors.Is(err, exec.ErrWaitDelay):
		return result, nil // it ended well; a descendant holds its output
	case err != nil:
		return result, fmt.Errorf("command: %s: %w", path, err)
	}
	return result, nil
}

// bounded keeps the first max bytes that are written to it.
type bounded struct {
	max     int
	kept    []byte
	dropped bool
}

// Write never fails: a program must not be stopped by having much to say.
func (b *bounded) Write(p []byte) (int, error) {
	room := b.max - len(b.kept)
	if room < len(p) {
		b.dropped = true
	}
	b.kept = append(b.kept, p[:min(room, len(p))]...)
	return len(p), nil
}

func lastLine(output []byte) string {
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	line := strings.ToValidUTF8(strings.TrimSpace(lines[len(lines)-1]), "�")
	if len(line) > 200 {
		line = strings.ToValidUTF8(line[:200], "") + "…"
	}
	return line
}

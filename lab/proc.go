package lab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cmd says what to start.
type Cmd struct {
	Args []string // the program, looked up in the host's PATH, and its arguments
	Env  []string // NAME=value, added to PATH, HOME, LANG
	Dir  string   // working directory; default /
	User string   // of the host's /etc/passwd; default root

	// Name names the log files, NAME.out and NAME.err; default the base name
	// of the program. A process started again under the same name appends.
	Name string

	// Stdin is passed as it is; nil: /dev/null.
	Stdin *os.File
	// Stdout and Stderr are passed as they are; nil: the log files.
	Stdout, Stderr *os.File
}

// Proc is a process of a host. It ends at the latest with the host's power.
type Proc struct {
	host           *Host
	cmd            Cmd
	outLog, errLog string
	done           chan struct{}

	mu     sync.Mutex
	pid    int // on the machine
	hostID int // in the host
	pidfd  int // -1 after the end
	status syscall.WaitStatus
}

// Start starts a process in the host and returns when it runs: the program was
// found and executed. It leads a session of its own.
func (h *Host) Start(c Cmd) (*Proc, error) {
	p, err := h.start(c)
	if err != nil {
		return nil, fmt.Errorf("lab: host %s: start %s: %w", h.name, strings.Join(c.Args, " "), err)
	}
	h.lab.log.Debug("started", "host", h.name, "args", c.Args, "pid", p.pid)
	return p, nil
}

func (h *Host) start(c Cmd) (*Proc, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("no program")
	}
	s, err := h.running()
	if err != nil {
		return nil, err
	}
	c.Name = cmp.Or(c.Name, filepath.Base(c.Args[0]))
	p := &Proc{host: h, cmd: c, done: make(chan struct{}), pidfd: -1}
	p.outLog = filepath.Join(h.logDir(), c.Name+".out")
	p.errLog = filepath.Join(h.logDir(), c.Name+".err")
	files, opened, err := p.files()
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	env := append([]string{"PATH=" + hostPath, "HOME=/root", "LANG=C.UTF-8"}, c.Env...)
	m := startMessage{Argv: c.Args, Env: env, Dir: cmp.Or(c.Dir, "/"), User: c.User}
	if err := s.start(p, m, files); err != nil {
		return nil, err
	}
	return p, nil
}

// files returns standard input, output and error, and which of them to close.
func (p *Proc) files() (files, opened []*os.File, err error) {
	files = []*os.File{p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr}
	for i, path := range []string{os.DevNull, p.outLog, p.errLog} {
		if files[i] != nil {
			continue
		}
		flags := os.O_RDONLY
		if i > 0 {
			flags = os.O_CREATE | os.O_APPEND | os.O_WRONLY
		}
		f, err := os.OpenFile(path, flags, 0o644)
		if err != nil {
			return nil, opened, err
		}
		files[i], opened = f, append(opened, f)
	}
	return files, opened, nil
}

func (p *Proc) started(hostID, pidfd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hostID, p.pidfd = hostID, pidfd
	p.pid = pidOf(pidfd)
}

func (p *Proc) exited(status syscall.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = status
	if p.pidfd >= 0 {
		syscall.Close(p.pidfd)
		p.pidfd = -1
	}
	close(p.done)
}

// pidOf returns the process id of a pidfd, 0 when it is gone already.
func pidOf(pidfd int) int {
	f, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil || pid < 0 {
				return 0
			}
			return pid
		}
	}
	return 0
}

// PID returns the process id on the machine; 0 when the process was gone
// before it could be asked.
func (p *Proc) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// HostPID returns the process id inside the host.
func (p *Proc) HostPID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hostID
}

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Signal sends a signal. A process that has ended gives [os.ErrProcessDone].
func (p *Proc) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := os.ErrProcessDone
	if p.pidfd >= 0 {
		err = unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		err = os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("lab: host %s: send %s to %s: %w", p.host.name, unix.SignalName(sig), p.cmd.Name, err)
	}
	return nil
}

// Kill sends SIGKILL to the process, not to its children, and returns when it
// has ended. One that has ended already is no error.
func (p *Proc) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("lab: host %s: %s does not end by SIGKILL", p.host.name, p.cmd.Name)
	}
}

// Stop sends SIGTERM and waits for the end. It returns what [Proc.Wait]
// returns, or, after it killed the process when ctx ended first, that.
func (p *Proc) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return p.result()
	case <-ctx.Done():
		err := fmt.Errorf("lab: host %s: %s did not end by SIGTERM: %w", p.host.name, p.cmd.Name, ctx.Err())
		return errors.Join(err, p.Kill())
	}
}

// Wait waits for the end of the process: nil after exit status 0, an
// [*ExitError] after any other end.
func (p *Proc) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.result()
	case <-ctx.Done():
		return fmt.Errorf("lab: host %s: wait for %s: %w", p.host.name, p.cmd.Name, ctx.Err())
	}
}

func (p *Proc) result() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == 0 {
		return nil
	}
	stderr := ""
	if p.cmd.Stderr == nil {
		stderr, _ = tail(p.errLog, 20) // of help, but not the error
	}
	return &ExitError{Host: p.host.name, Args: p.cmd.Args, Status: p.status, Stderr: stderr}
}

// ExitError is the end of a process other than by exit status 0.
type ExitError struct {
	Host   string
	Args   []string
	Status syscall.WaitStatus
	Stderr string // the end of what it said there, when that was kept
}

func (e *ExitError) Error() string {
	text := fmt.Sprintf("lab: host %s: %s: %s", e.Host, strings.Join(e.Args, " "), statusText(e.Status))
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	return text
}

// StdoutPath is the file on the machine with what the process printed, unless
// Cmd.Stdout was set. It stays after a power cut.
func (p *Proc) StdoutPath() string { return p.outLog }

// StderrPath is the same for standard error.
func (p *Proc) StderrPath() string { return p.errLog }

// Run runs a command in the host to its end and returns what it printed on
// standard output. An end other than exit status 0 is an [*ExitError] with its
// standard error; at the end of ctx the command is killed.
func (h *Host) Run(ctx context.Context, args ...string) (string, error) {
	return h.RunCmd(ctx, Cmd{Args: args})
}

// RunCmd is [Host.Run] with all of a [Cmd]. Its output goes to nobody else.
func (h *Host) RunCmd(ctx context.Context, c Cmd) (string, error) {
	// Files, not pipes: a daemon that keeps its output open would hold us.
	var outputs [2]*os.File
	for i := range outputs {
		f, err := os.CreateTemp(h.logDir(), ".run-")
		if err != nil {
			return "", fmt.Errorf("lab: host %s: %w", h.name, err)
		}
		defer f.Close()
		if err := os.Remove(f.Name()); err != nil {
			return "", fmt.Errorf("lab: host %s: %w", h.name, err)
		}
		outputs[i] = f
	}
	c.Stdout, c.Stderr = outputs[0], outputs[1]
	p, err := h.Start(c)
	if err != nil {
		return "", err
	}
	err = p.Wait(ctx)
	if ctx.Err() != nil && err != nil {
		err = errors.Join(err, p.Kill())
	}
	if exit := new(ExitError); errors.As(err, &exit) {
		stderr, readErr := readAll(outputs[1])
		exit.Stderr = string(bytes.TrimSpace(stderr))
		err = errors.Join(exit, readErr)
	}
	stdout, readErr := readAll(outputs[0])
	return string(stdout), errors.Join(err, readErr)
}

func readAll(f *os.File) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
}

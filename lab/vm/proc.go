package vm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/lab/vm/channel"
)

// searchPath is $PATH of what is started in a machine.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Cmd is a program to start in a machine.
type Cmd struct {
	Args []string // the program and its arguments
	Env  []string // in addition to PATH, HOME and LANG
	Dir  string   // default /
	User string   // default root; a user of the machine

	Stdin io.Reader // nil: empty

	// Stdout and Stderr get what the program prints, from one goroutine that
	// serves the whole machine: they must not block. nil: its end is kept, and
	// logged when a test fails.
	Stdout, Stderr io.Writer
}

// Proc is a process in a machine, running or ended.
type Proc struct {
	machine *Machine
	session *session
	id      uint32
	cmd     Cmd

	stdout, stderr *output

	started chan error    // one message
	done    chan struct{} // closed when it has ended

	mu     sync.Mutex
	pid    int
	status syscall.WaitStatus
	err    error // it never started, or its machine is off
}

// output passes on what a process prints; the first error stays.
type output struct {
	w io.Writer

	mu  sync.Mutex
	err error
}

func (o *output) write(data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		_, o.err = o.w.Write(data)
	}
}

// Start starts a program and returns when it runs: it was found and executed.
// It leads a session of its own.
func (m *Machine) Start(c Cmd) (*Proc, error) {
	p, err := m.start(c)
	if err != nil {
		return nil, fmt.Errorf("vm: machine %s: start %s: %w", m.o.Name, strings.Join(c.Args, " "), err)
	}
	return p, nil
}

func (m *Machine) start(c Cmd) (*Proc, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("no program")
	}
	s, err := m.running()
	if err != nil {
		return nil, err
	}
	p := &Proc{machine: m, cmd: c, started: make(chan error, 1), done: make(chan struct{})}
	for _, o := range []struct {
		to   **output
		from io.Writer
		name string
	}{{&p.stdout, c.Stdout, "out"}, {&p.stderr, c.Stderr, "err"}} {
		if o.from == nil {
			o.from = m.printed(path.Base(c.Args[0]) + "." + o.name)
		}
		*o.to = &output{w: o.from}
	}
	if err := s.add(p); err != nil {
		return nil, err
	}
	env := append([]string{"PATH=" + searchPath, "HOME=/root", "LANG=C.UTF-8"}, c.Env...)
	message := channel.StartMessage{Args: c.Args, Env: env, Dir: cmp.Or(c.Dir, "/"), User: c.User}
	if err := s.conn.SendJSON(channel.Start, p.id, message); err != nil {
		return nil, errors.Join(ErrOff, err)
	}
	if err := <-p.started; err != nil {
		return nil, err
	}
	go p.feed()
	return p, nil
}

// feed sends standard input, and its end.
func (p *Proc) feed() {
	in := p.cmd.Stdin
	if in == nil {
		in = strings.NewReader("")
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 && p.send(channel.Stdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = p.send(channel.Stdin, nil) // or the machine is off
			return
		}
	}
}

func (p *Proc) send(kind channel.Kind, data []byte) error {
	return p.session.conn.Send(channel.Frame{Kind: kind, ID: p.id, Data: data})
}

func (p *Proc) begin(pid int) {
	p.mu.Lock()
	p.pid = pid
	p.mu.Unlock()
	p.started <- nil
}

func (p *Proc) end(status syscall.WaitStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = status
	close(p.done)
}

// fail ends a process that didn't start, or that lost its machine.
func (p *Proc) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.started <- err:
	default:
	}
	p.err = err
	close(p.done)
}

// PID returns the process id inside the machine.
func (p *Proc) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Done is closed when the process has ended, or its machine is off.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Signal sends a signal. A process that has ended gives [os.ErrProcessDone].
func (p *Proc) Signal(sig syscall.Signal) error { return p.signal(sig, int32(sig)) }

// signal sends a number: that of the signal, negative for the whole group.
func (p *Proc) signal(sig syscall.Signal, number int32) error {
	var err error
	select {
	case <-p.done:
		err = os.ErrProcessDone
	default:
		err = p.send(channel.Signal, binary.BigEndian.AppendUint32(nil, uint32(number)))
	}
	if err != nil {
		return fmt.Errorf("vm: machine %s: send %s to %s: %w", p.machine.o.Name, unix.SignalName(sig), p.cmd.Args[0], err)
	}
	return nil
}

// Kill sends SIGKILL to the process and to what it started in its group, and
// returns when it has ended. One that has ended already is no error.
func (p *Proc) Kill() error {
	if err := p.signal(syscall.SIGKILL, -int32(syscall.SIGKILL)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(killTime):
		return fmt.Errorf("vm: machine %s: %s does not end by SIGKILL", p.machine.o.Name, p.cmd.Args[0])
	}
}

// Stop sends SIGTERM and waits for the end. It returns what [Proc.Wait]
// returns, or, after it killed the process when ctx ended first, that.
func (p *Proc) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return p.waitOrKill(ctx)
}

// Wait waits for the end of the process: nil after exit status 0, an
// [*ExitError] after any other end, [ErrOff] when its machine went off.
func (p *Proc) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.result()
	case <-ctx.Done():
		return fmt.Errorf("vm: machine %s: wait for %s: %w", p.machine.o.Name, strings.Join(p.cmd.Args, " "), ctx.Err())
	}
}

func (p *Proc) waitOrKill(ctx context.Context) error {
	err := p.Wait(ctx)
	if err != nil && ctx.Err() != nil {
		return errors.Join(err, p.Kill())
	}
	return err
}

func (p *Proc) result() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("vm: machine %s: %s: %w", p.machine.o.Name, strings.Join(p.cmd.Args, " "), p.err)
	}
	if p.status != 0 {
		return &ExitError{Machine: p.machine.o.Name, Args: p.cmd.Args, Status: p.status}
	}
	for _, o := range []*output{p.stdout, p.stderr} {
		o.mu.Lock()
		err := o.err
		o.mu.Unlock()
		if err != nil {
			return fmt.Errorf("vm: machine %s: take what %s printed: %w", p.machine.o.Name, p.cmd.Args[0], err)
		}
	}
	return nil
}

// ExitError is the end of a process other than by exit status 0.
type ExitError struct {
	Machine string
	Args    []string
	Status  syscall.WaitStatus
	Stderr  string // what it said there, when that was kept
}

func (e *ExitError) Error() string {
	what := fmt.Sprintf("exit status %d", e.Status.ExitStatus())
	if e.Status.Signaled() {
		what = "killed by " + unix.SignalName(e.Status.Signal())
	}
	text := fmt.Sprintf("vm: machine %s: %s: %s", e.Machine, strings.Join(e.Args, " "), what)
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	return text
}

// Run runs a command in the machine to its end and returns what it printed on
// standard output. An end other than exit status 0 is an [*ExitError] with its
// standard error; at the end of ctx the command is killed.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	return m.RunCmd(ctx, Cmd{Args: args})
}

// RunCmd is [Machine.Run] with all of a [Cmd]. What it prints goes also to
// Cmd.Stdout and Cmd.Stderr.
func (m *Machine) RunCmd(ctx context.Context, c Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = both(&stdout, c.Stdout), both(&stderr, c.Stderr)
	p, err := m.Start(c)
	if err != nil {
		return "", err
	}
	err = p.waitOrKill(ctx)
	if exit := new(ExitError); errors.As(err, &exit) {
		exit.Stderr = string(bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}

func both(buf *bytes.Buffer, w io.Writer) io.Writer {
	if w == nil {
		return buf
	}
	return io.MultiWriter(buf, w)
}

// Write writes a file in the machine and makes the directories that it needs.
// It is synced, so that on a disk it survives.
func (m *Machine) Write(ctx context.Context, file string, data []byte) error {
	_, err := m.RunCmd(ctx, Cmd{
		Args:  []string{"/bin/sh", "-c", `mkdir -p "$(dirname "$1")" && cat >"$1" && sync "$1"`, "sh", file},
		Stdin: bytes.NewReader(data),
	})
	return err
}

// Read returns a file of the machine.
func (m *Machine) Read(ctx context.Context, file string) ([]byte, error) {
	text, err := m.Run(ctx, "cat", "--", file)
	return []byte(text), err
}

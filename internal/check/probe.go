package check

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"holdfast/internal/kernel/command"
	"holdfast/internal/state"
)

// Probe looks at a service once. It must return soon after ctx ends, which it
// does at the check's time limit.
type Probe interface {
	Probe(ctx context.Context) Result
}

// Commander runs a script: *command.Runner.
type Commander interface {
	Run(context.Context, command.Command) (command.Result, error)
}

// NewProbe makes the probe of a valid definition that is not a TTL check.
func NewProbe(d Definition, commands Commander) (Probe, error) {
	d = d.WithDefaults()
	switch d.Type() {
	case "tcp":
		return tcpProbe{address: d.TCP, via: d.Via, limit: d.Timeout}, nil
	case "ssh":
		return sshProbe{address: d.SSH, via: d.Via, limit: d.Timeout}, nil
	case "http":
		return newHTTPProbe(d)
	case "dns":
		return newDNSProbe(d)
	case "ntp":
		return ntpProbe{address: d.NTP, limit: d.Timeout}, nil
	case "script":
		return scriptProbe{argv: d.Script, limit: d.Timeout, commands: commands}, nil
	case "process":
		return processProbe{name: d.Process, proc: "/proc"}, nil
	}
	return nil, fmt.Errorf("a check of type %q has no probe", d.Type())
}

// passing, warning and critical make results.
func passing(format string, args ...any) Result { return result(state.Passing, format, args...) }
func warning(format string, args ...any) Result { return result(state.Warning, format, args...) }
func critical(format string, args ...any) Result {
	return result(state.Critical, format, args...)
}

func result(status state.Status, format string, args ...any) Result {
	return Result{Status: status, Output: fmt.Sprintf(format, args...)}
}

// tcpProbe connects, and closes at once.
type tcpProbe struct {
	address string
	via     Via
	limit   time.Duration
}

func (p tcpProbe) Probe(ctx context.Context) Result {
	conn, err := p.via.dial(ctx, "tcp", p.address)
	if err != nil {
		return critical("TCP connect %s: %s", p.address, reason(err, p.limit))
	}
	_ = conn.Close() // the answer is known
	return passing("TCP connect %s: success", p.address)
}

// scriptProbe runs a program: 0 is passing, 1 is warning, the rest critical.
type scriptProbe struct {
	argv     []string
	limit    time.Duration
	commands Commander
}

func (p scriptProbe) Probe(ctx context.Context) Result {
	if p.commands == nil {
		return critical("%s: scripts are not run here", p.argv[0])
	}
	done, err := p.commands.Run(ctx, command.Command{
		Argv:      p.argv,
		Env:       []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"},
		Timeout:   p.limit,
		MaxOutput: state.MaxOutput,
	})
	output := string(done.Stdout) + string(done.Stderr)
	var exit *command.ExitError
	switch {
	case err == nil:
		return Result{Status: state.Passing, Output: output}
	case errors.As(err, &exit) && exit.Code == 1:
		return Result{Status: state.Warning, Output: output}
	case errors.As(err, &exit) && exit.Signal == "":
		return critical("exit status %d: %s", exit.Code, output)
	case errors.As(err, &exit):
		return critical("ended by signal %s: %s", exit.Signal, output)
	case errors.Is(err, command.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return critical("%s: not done within %s, killed: %s", p.argv[0], p.limit, output)
	}
	return critical("%s", err)
}

// reason says why a connection failed, the same way every time: no port that
// the kernel chose, no address that changes.
func reason(err error, limit time.Duration) string {
	if timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); errors.Is(err, context.DeadlineExceeded) || ok && timeout.Timeout() {
		return fmt.Sprintf("no answer within %s", limit)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err.Error()
	}
	return err.Error()
}

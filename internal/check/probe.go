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

// NewProbe makes the probe of a valid definition that is neither a TTL check
// nor an alias (see NewAliasProbe).
func NewProbe(d Definition, commands Commander) (Probe, error) {
	d = d.WithDefaults()
	switch d.Type() {
	case "tcp":
		return tcpProbe{address: d.TCP, send: d.Send, expect: d.Expect, via: d.Via, limit: d.Timeout}, nil
	case "udp":
		return udpProbe{address: d.UDP, send: d.Send, expect: d.Expect, limit: d.Timeout}, nil
	case "grpc":
		return newGRPCProbe(d), nil
	case "ssh":
		return sshProbe{address: d.SSH, via: d.Via, limit: d.Timeout}, nil
	case "http":
		return newHTTPProbe(d)
	case "dns":
		return newDNSProbe(d)
	case "ntp":
		return ntpProbe{address: d.NTP, limit: d.Timeout}, nil
	case "script":
		return scriptProbe{argv: d.Script, user: d.User, limit: d.Timeout, commands: commands}, nil
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

package keepalived

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"holdfast/lab"
)

const (
	program    = "/usr/sbin/keepalived"
	configFile = "/etc/keepalived/keepalived.conf"
)

// Require skips the test, or fails it in CI, where keepalived is not installed.
func Require(t lab.TB) {
	t.Helper()
	_, err := os.Stat(program)
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("keepalived: %v; hack/deps installs it", err)
	}
	t.Skipf("keepalived: %v; hack/deps installs it", err)
}

// Version is the installed program's, such as "2.2.7".
func Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("keepalived: --version: %w", err)
	}
	_, after, _ := strings.Cut(string(out), "Keepalived v")
	version, _, _ := strings.Cut(after, " ")
	return version, nil
}

// Daemon is a keepalived on a host: a parent and the child that speaks VRRP.
type Daemon struct {
	*lab.Proc // the parent
}

// Start writes the configuration and starts keepalived in the foreground, with
// its log in the host's log files. It returns before the routers have a state.
func Start(h *lab.Host, c Config) (*Daemon, error) {
	if err := h.Write(configFile, []byte(c.String())); err != nil {
		return nil, err
	}
	// One that was killed while it wrote its process number leaves an empty
	// file, and the next takes that for a daemon that runs.
	p, err := h.Start(lab.Cmd{Name: "keepalived", Args: []string{
		"sh", "-c", `rm -f /run/keepalived.pid /run/vrrp.pid; exec "$@"`, "sh",
		program, "--use-file", configFile, "--dont-fork", "--log-console", "--log-detail", "--no-syslog", "--vrrp",
	}})
	if err != nil {
		return nil, err
	}
	return &Daemon{p}, nil
}

// Kill kills parent and child at one moment with SIGKILL and returns when the
// parent has ended. The parent stands still first: it would start another
// child, and the child would end in order if its parent died before it.
func (d *Daemon) Kill() error { return lab.KillTree(d.Proc) }

// Signal sends a signal to parent and child.
func (d *Daemon) Signal(sig syscall.Signal) error { return lab.SignalTree(d.Proc, sig) }

// Stop sends SIGTERM to the parent, which ends both: the routers send priority
// 0 and give their addresses back. One that has ended is no error.
func (d *Daemon) Stop(ctx context.Context) error {
	err := d.Proc.Stop(ctx)
	// It ends itself by the signal once more.
	if exit := new(lab.ExitError); errors.As(err, &exit) && exit.Status.Signaled() && exit.Status.Signal() == syscall.SIGTERM {
		return nil
	}
	return err
}

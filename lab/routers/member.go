package routers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"holdfast/lab"
	"holdfast/lab/keepalived"
	"holdfast/lab/wire"
)

// Member is a host that runs the virtual routers.
type Member struct {
	Host *lab.Host
	Kind Kind
	MAC  wire.MAC
	// Options are what this member is configured with: the site's, unless
	// changed before Start.
	Options Options

	site  *Site
	index int
	proc  *lab.Proc
	peer  *keepalived.Daemon // when proc is its parent
}

func (m *Member) String() string { return fmt.Sprintf("%s (%s)", m.Host, m.Kind) }

// Proc is the daemon, the last one started; nil before.
func (m *Member) Proc() *lab.Proc { return m.proc }

// Start writes the configuration and starts the daemon. It returns before any
// router has a state.
func (m *Member) Start() error {
	if m.Kind == Keepalived {
		d, err := keepalived.Start(m.Host, m.keepalivedConfig())
		if err == nil {
			m.peer, m.proc = d, d.Proc
		}
		return err
	}
	if err := m.Host.Write(clusterFile, m.clusterFile()); err != nil {
		return err
	}
	if m.Options.Password != "" {
		if err := m.Host.Write(secretFile, []byte(m.Options.Password+"\n")); err != nil {
			return err
		}
	}
	p, err := m.Host.Start(lab.Cmd{Args: m.agent(), Name: "agent"})
	if err == nil {
		m.proc = p
	}
	return err
}

// Kill kills the daemon with SIGKILL: of keepalived parent and child, of
// Holdfast the agent; its guard lives.
func (m *Member) Kill() error {
	if m.Kind == Keepalived {
		return m.peer.Kill()
	}
	return m.proc.Kill()
}

// KillAll kills every process of the daemon at one moment.
func (m *Member) KillAll() error { return lab.KillTree(m.proc) }

// Stop ends the daemon by SIGTERM.
func (m *Member) Stop(ctx context.Context) error {
	if m.Kind == Keepalived {
		return m.peer.Stop(ctx)
	}
	return m.proc.Stop(ctx)
}

// End sends SIGTERM and waits until the daemon has ended, however it did: one
// that is told in its first moments, before it takes signals, dies of it.
func (m *Member) End(ctx context.Context) error {
	if m.Kind == Keepalived {
		return m.peer.Stop(ctx)
	}
	if err := m.Terminate(); err != nil {
		return err
	}
	select {
	case <-m.proc.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Terminate sends SIGTERM and does not wait.
func (m *Member) Terminate() error { return m.proc.Signal(syscall.SIGTERM) }

// Pause stops every process of the daemon until Continue.
func (m *Member) Pause() error { return lab.SignalTree(m.proc, syscall.SIGSTOP) }

// Continue ends Pause.
func (m *Member) Continue() error { return lab.SignalTree(m.proc, syscall.SIGCONT) }

// Runs says whether the daemon runs.
func (m *Member) Runs() bool {
	if m.proc == nil {
		return false
	}
	select {
	case <-m.proc.Done():
		return false
	default:
		return true
	}
}

// Unplug pulls the member's cable; Plug puts it back.
func (m *Member) Unplug() error { return m.Host.Unplug(Network) }

// Plug puts the cable back.
func (m *Member) Plug() error { return m.Host.Plug(Network) }

// Log is what the daemon printed, over all its starts.
func (m *Member) Log() string {
	if m.proc == nil {
		return ""
	}
	var b strings.Builder
	for _, path := range []string{m.proc.StdoutPath(), m.proc.StderrPath()} {
		text, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		b.Write(text)
	}
	return b.String()
}

// Sweep takes the virtual addresses away that a killed daemon left.
func (m *Member) Sweep() error {
	return m.Host.Do(func() error {
		var errs []error
		for i := range m.Options.Routers {
			vip := m.Options.VIP(i)
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())}}
			link, err := netlink.LinkByName(Device)
			if err != nil {
				return err
			}
			if err := netlink.AddrDel(link, addr); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
				errs = append(errs, fmt.Errorf("take %s from %s: %w", vip, m.Host, err))
			}
		}
		return errors.Join(errs...)
	})
}

// Holds says whether the member's kernel has the address of a router.
func (m *Member) Holds(router int) (bool, error) {
	holds := false
	err := m.Host.Do(func() error {
		link, err := netlink.LinkByName(Device)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range addrs {
			holds = holds || a.IP.Equal(m.Options.VIP(router).AsSlice())
		}
		return err
	})
	return holds, err
}

// Cost is what all processes of the daemon have used.
type Cost struct {
	CPU time.Duration // user and system, those that live
	RSS int64         // bytes; pages that processes share count in each
}

// Cost adds up the daemon's processes.
func (m *Member) Cost() (Cost, error) {
	var sum Cost
	for _, pid := range m.proc.Tree() {
		c, err := costOf(pid)
		if err != nil {
			return sum, err
		}
		sum.CPU += c.CPU
		sum.RSS += c.RSS
	}
	return sum, nil
}

// costOf reads proc_pid_stat(5). schedstat counts nanoseconds, where stat has
// ticks of 10 ms; but of one thread only.
func costOf(pid int) (Cost, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return Cost{}, err
	}
	var c Cost
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // a thread that ended
		}
		if err != nil {
			return c, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return c, err
		}
		c.CPU += time.Duration(ns)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return c, err
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		return c, err
	}
	c.RSS = resident * int64(os.Getpagesize())
	return c, nil
}

// Yield hands a router over to a peer without loss: vip move.
func (m *Member) Yield(ctx context.Context, router int) error {
	return m.vip(ctx, "move", router)
}

// Return takes a router back that was pulled here or handed over: vip release.
func (m *Member) Return(ctx context.Context, router int) error {
	return m.vip(ctx, "release", router)
}

func (m *Member) vip(ctx context.Context, verb string, router int) error {
	_, err := m.Host.Run(ctx, m.Options.Binary, "vip", verb, vipName(router), "--socket", runDir+"/net.sock")
	return err
}

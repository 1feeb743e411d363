package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"holdfast/vrrp"
)

type restartCmd struct {
	RunDir string        `type:"path" default:"/run/holdfast" env:"HOLDFAST_RUN_DIR" help:"The agent's --run-dir."`
	Grace  time.Duration `default:"10s" help:"How long a successor may take to come; other nodes wait for it as long (VRRP version 3). At most 40.95s."`
	Mark   bool          `help:"Leave the mark alone: the agent's next end, within the grace, is one for a restart."`
}

func (*restartCmd) Help() string {
	return "Examples:\n" +
		"  holdfast restart                                       # systemd starts the successor (Restart=on-failure)\n" +
		"  holdfast restart --mark && systemctl restart holdfast  # after an upgrade of the unit file\n\n" +
		"The agent ends with exit status 75 and leaves its virtual addresses in place; the successor adopts them, and no address moves.\n" +
		"When none comes within the grace, they go to another node."
}

func (c *restartCmd) Run(con *console) error {
	pid, err := vrrp.Running(c.RunDir)
	if err != nil {
		return err
	}
	if pid == 0 {
		return &exitError{exitUnreachable, fmt.Errorf("no agent with virtual routers runs in %s; to restart one without: systemctl restart holdfast", c.RunDir)}
	}
	if err := vrrp.MarkRestart(c.RunDir, c.Grace); err != nil {
		return err
	}
	if c.Mark {
		_, err := fmt.Fprintf(con.out, "marked: when process %d ends within %s, its addresses wait for a successor\n", pid, c.Grace)
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("end process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(con.ctx, restartPatience)
	defer cancel()
	if err := awaitEnd(ctx, pid); err != nil {
		return err
	}
	_, err = fmt.Fprintf(con.out, "process %d has ended; its addresses wait %s for a successor\n", pid, c.Grace)
	return err
}

// restartPatience is longer than the agent gives its tasks to end.
const restartPatience = 15 * time.Second

// awaitEnd waits until a process is gone. It is not ours, so the kernel tells
// only those who ask.
func awaitEnd(ctx context.Context, pid int) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) || isZombie(pid) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("process %d has not ended: %w", pid, ctx.Err())
		case <-tick.C:
		}
	}
}

// isZombie tells whether a process has ended and its parent has yet to notice.
func isZombie(pid int) bool {
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return errors.Is(err, os.ErrNotExist)
}

package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Tree lists the process and all that descend from it, parents first, by their
// ids on the machine. What was orphaned belongs to the host's init and is not
// among them.
func (p *Proc) Tree() []int {
	pid := p.PID()
	if pid == 0 {
		return nil
	}
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children(pids[i])...)
	}
	return pids
}

// children are those of every thread of a process; none of one that is gone.
func children(pid int) []int {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// SignalTree sends a signal to a process and all that descend from it. They
// stand still while they are counted, so that none is missed.
func SignalTree(p *Proc, sig syscall.Signal) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	var err error
	pids := p.Tree()
	for _, pid := range pids[min(1, len(pids)):] {
		err = errors.Join(err, unlessGone(syscall.Kill(pid, sig)))
	}
	if err2 := p.Signal(sig); err2 != nil && !errors.Is(err2, os.ErrProcessDone) {
		err = errors.Join(err, err2)
	}
	if sig != syscall.SIGSTOP && sig != syscall.SIGKILL {
		err = errors.Join(err, p.Signal(syscall.SIGCONT))
	}
	return err
}

// KillTree kills a process and all that descend from it at one moment, with
// SIGKILL, and returns when the first has ended. One that has ended already is
// no error.
func KillTree(p *Proc) error {
	err := SignalTree(p, syscall.SIGKILL)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return errors.Join(err, p.Kill())
}

// unlessGone takes the error away that a process has ended meanwhile.
func unlessGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

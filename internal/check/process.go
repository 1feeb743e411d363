package check

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// commLength is the most bytes of a name that the kernel keeps in
// /proc/PID/comm (TASK_COMM_LEN without its final NUL; proc(5)).
const commLength = 15

// processProbe looks for a live process by its name.
type processProbe struct {
	name string
	proc string // where proc is mounted
}

func (p processProbe) Probe(ctx context.Context) Result {
	entries, err := os.ReadDir(p.proc)
	if err != nil {
		return critical("list processes: %s", err)
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids) // the oldest first, most likely the parent
	for _, pid := range pids {
		if ctx.Err() != nil {
			return critical("process %s: not found in time", p.name)
		}
		if p.matches(filepath.Join(p.proc, strconv.Itoa(pid))) {
			return passing("process %s is alive (pid %d)", p.name, pid)
		}
	}
	return critical("process %s: none is alive", p.name)
}

// matches tells whether the process in dir has the name and is alive. A
// process that ends while being looked at does not match.
func (p processProbe) matches(dir string) bool {
	comm, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return false
	}
	name := strings.TrimSuffix(string(comm), "\n")
	switch {
	case name == p.name:
	case len(p.name) > commLength && name == p.name[:commLength] && argvName(dir) == p.name:
	case exeName(dir) == p.name: // it gave itself another name
	default:
		return false
	}
	return alive(dir)
}

// argvName is the file name of argv[0].
func argvName(dir string) string {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return ""
	}
	first, _, _ := bytes.Cut(line, []byte{0})
	return filepath.Base(string(first))
}

// exeName is the file name of the program, where we may see it; also when an
// upgrade has replaced the file since.
func exeName(dir string) string {
	target, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return ""
	}
	return filepath.Base(strings.TrimSuffix(target, " (deleted)"))
}

// alive is false for a zombie, and for a process that has gone.
func alive(dir string) bool {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	return err == nil && isRunning(stat)
}

// isRunning reads the state out of /proc/PID/stat: it follows the name in
// parentheses, which may itself hold any character (proc_pid_stat(5)).
func isRunning(stat []byte) bool {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 || end+2 >= len(stat) {
		return false
	}
	switch stat[end+2] {
	case 'Z', 'X', 'x':
		return false
	}
	return true
}

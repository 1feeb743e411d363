package lb

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// sessionsDir is where logind keeps its sessions, a file each. libsystemd's
// sd_session_get_tty(3) and its kin read the same files.
const sessionsDir = "/run/systemd/sessions"

// maxSession is more than a session's file has.
const maxSession = 64 << 10

// parseSession reads a session's file as logind writes it: a line KEY=VALUE
// each, unknown ones among them. ok is false for what is nobody's log-in: a
// greeter, a service manager, a session that is closing.
func parseSession(b []byte) (l Login, ok bool) {
	values := map[string]string{}
	for line := range bytes.Lines(b) {
		key, value, found := strings.Cut(strings.TrimSpace(strings.ToValidUTF8(string(line), "?")), "=")
		if found {
			values[key] = strings.Trim(value, `"`)
		}
	}
	pid, err := strconv.ParseInt(values["LEADER"], 10, 32)
	if err != nil || pid <= 0 || values["USER"] == "" || values["STATE"] == "closing" {
		return Login{}, false
	}
	if class := values["CLASS"]; class != "" && class != "user" && class != "user-early" && class != "user-light" {
		return Login{}, false
	}
	l = Login{User: values["USER"], From: values["REMOTE_HOST"], pid: int(pid)}
	if terminal(values["TTY"]) {
		l.TTY = values["TTY"]
	}
	if micro, err := strconv.ParseInt(values["REALTIME"], 10, 64); err == nil && micro > 0 {
		l.At = time.UnixMicro(micro)
	}
	return l, true
}

// sessions are those that logind knows, by their files below root; none where
// logind does not run.
func sessions(root string) (all []Login, err error) {
	dir := filepath.Join(root, sessionsDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lb: who is logged in: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() { // ID.ref is a pipe, by which logind learns of the end
			continue
		}
		text, err := readSome(filepath.Join(dir, e.Name()), maxSession)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("lb: who is logged in: %w", err)
		}
		l, ok := parseSession(text)
		if !ok {
			continue
		}
		if l.TTY == "" {
			l.TTY = terminalBelow(root, l.pid)
		}
		all = append(all, l)
	}
	return all, nil
}

// terminalBelow finds the terminal of a session whose file names none, as those
// of sshd do where there is no utmp: that of a process in the session's control
// group. "" when there is none: somebody who copies files has none.
func terminalBelow(root string, leader int) string {
	text, err := readSome(filepath.Join(root, "proc", strconv.Itoa(leader), "cgroup"), maxSession)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		path, found := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !found || !filepath.IsAbs(path) || !strings.HasSuffix(path, ".scope") {
			continue
		}
		procs, err := readSome(filepath.Join(root, "sys/fs/cgroup", filepath.Clean(path), "cgroup.procs"), maxSession)
		if err != nil {
			return ""
		}
		for _, pid := range strings.Fields(string(procs)) {
			if _, err := strconv.ParseUint(pid, 10, 31); err != nil {
				continue
			}
			stat, err := readSome(filepath.Join(root, "proc", pid, "stat"), maxSession)
			if tty := terminalOf(stat); err == nil && tty != "" {
				return tty
			}
		}
	}
	return ""
}

// The device numbers of terminals (Documentation/admin-guide/devices.txt of
// Linux): 136 to 143 are pts, 256 each.
const (
	consoles    = 4
	maxConsole  = 63
	firstPseudo = 136
	lastPseudo  = 143
)

// terminalOf reads the controlling terminal out of /proc/PID/stat (proc(5)); ""
// when it has none.
func terminalOf(stat []byte) string {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // a program's name may have spaces
	if len(fields) < 5 {
		return ""
	}
	number, err := strconv.ParseUint(fields[4], 10, 32)
	if err != nil {
		return ""
	}
	major, minor := number>>8&0xfff, number&0xff|number>>12&0xfff00
	switch {
	case major >= firstPseudo && major <= lastPseudo:
		return fmt.Sprintf("pts/%d", (major-firstPseudo)<<8+minor)
	case major == consoles && minor > 0 && minor <= maxConsole:
		return fmt.Sprintf("tty%d", minor)
	}
	return ""
}

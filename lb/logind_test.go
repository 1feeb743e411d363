package lb

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is the files of a machine where people are logged in.
type machine string

func (m machine) write(t *testing.T, path, text string) {
	t.Helper()
	path = filepath.Join(string(m), path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// session is a file of logind in version 252, Debian 12's.
func (m machine) session(t *testing.T, id, user string, leader int, more string) {
	t.Helper()
	m.write(t, sessionsDir+"/"+id, fmt.Sprintf("# This is private data. Do not parse.\nUID=1000\nUSER=%s\nACTIVE=1\nIS_DISPLAY=0\nREMOTE=1\nTYPE=tty\nSCOPE=session-%s.scope\nLEADER=%d\nREALTIME=1700000000000000\n%s", user, id, leader, more))
	m.write(t, fmt.Sprintf("proc/%d/cgroup", leader), fmt.Sprintf("0::/user.slice/user-1000.slice/session-%s.scope\n", id))
}

func (m machine) logins(t *testing.T) (all []string) {
	t.Helper()
	found, err := loggedInBelow(string(m))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range found {
		all = append(all, fmt.Sprintf("%s %q from %q", l.User, l.TTY, l.From))
	}
	return all
}

func TestWhoIsLoggedInIsKnownWithoutUtmpAndNobodyTwice(t *testing.T) {
	m := machine(t.TempDir())
	if got := m.logins(t); len(got) != 0 {
		t.Errorf("on a machine with neither: %v", got)
	}
	m.session(t, "3", "ada", 20, "STATE=active\nCLASS=user\nTTY=pts/0\nREMOTE_HOST=10.3.0.7\n")
	m.session(t, "4", "bob", 30, "STATE=online\nCLASS=user\nREMOTE_HOST=\"10.3.0.8\"\n") // no terminal in its file
	m.write(t, "sys/fs/cgroup/user.slice/user-1000.slice/session-4.scope/cgroup.procs", "30\n31\n")
	m.write(t, "proc/30/stat", "30 (sshd) S 1 30 30 0 -1 4194560")
	m.write(t, "proc/31/stat", "31 (-bash) x) S 30 31 31 34817 40 4194560")          // 136:1
	m.session(t, "5", "eve", 40, "STATE=online\nCLASS=user\nTTY=../../etc/passwd\n") // copies files
	m.session(t, "c1", "gdm", 50, "STATE=active\nCLASS=greeter\nTTY=tty1\n")
	m.session(t, "6", "gone", 60, "STATE=closing\nCLASS=user\nTTY=pts/6\n")
	m.session(t, "7", "dead", 70, "STATE=active\nCLASS=user\nTTY=pts/7\n")
	if err := os.RemoveAll(filepath.Join(string(m), "proc/70")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(string(m), sessionsDir, "3.ref"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.write(t, "dev/pts/0", "")
	typed := time.Unix(1700000600, 0)
	if err := os.Chtimes(filepath.Join(string(m), "dev/pts/0"), typed, typed); err != nil {
		t.Fatal(err)
	}
	want := []string{`ada "pts/0" from "10.3.0.7"`, `bob "pts/1" from "10.3.0.8"`, `eve "" from ""`}
	if got := m.logins(t); !slices.Equal(got, want) {
		t.Errorf("by logind: %v, want %v", got, want)
	}
	found, err := loggedInBelow(string(m))
	if err != nil || !found[0].Last.Equal(typed) || found[0].At.Unix() != 1700000000 || !found[2].Last.IsZero() {
		t.Errorf("typed at %v, logged in at %v; who has no terminal typed at %v; %v", found[0].Last, found[0].At, found[2].Last, err)
	}

	m.write(t, utmpFile, string(utmp(7, 21, "pts/0", "ada"))+string(utmp(7, 30, "pts/1", "bob"))+string(utmp(7, 80, "pts/8", "cy")))
	for _, pid := range []int{21, 80} {
		m.write(t, "proc/"+strconv.Itoa(pid)+"/stat", "")
	}
	want = []string{`ada "pts/0" from "10.3.0.7"`, `bob "pts/1" from "10.3.0.7"`, `cy "pts/8" from "10.3.0.7"`, `eve "" from ""`}
	if got := m.logins(t); !slices.Equal(got, want) {
		t.Errorf("by both: %v, want %v", got, want)
	}
}

func TestTheTerminalOfAProcessIsReadFromItsDeviceNumber(t *testing.T) {
	for number, want := range map[string]string{
		"0": "", "1025": "tty1", "1087": "tty63", "1088": "", "34816": "pts/0", "35071": "pts/255", "35072": "pts/256", "36863": "pts/2047", "1083392": "pts/256", "1281": "", "-1": "", "x": "",
	} {
		if got := terminalOf([]byte("31 (a b) S 30 31 31 " + number + " 40")); got != want {
			t.Errorf("device %s is %q, want %q", number, got, want)
		}
	}
}

// Whatever stands in logind's files, a terminal is one below /dev.
func FuzzSession(f *testing.F) {
	f.Add([]byte("USER=ada\nSTATE=active\nCLASS=user\nTTY=pts/0\nLEADER=20\nREALTIME=1700000000000000\n"), []byte("31 (-bash) S 30 31 31 34817 40"))
	f.Add([]byte("USER=\"a b\"\nLEADER=99999999999\nTTY=../x\nREALTIME=-1"), []byte(") S"))
	f.Fuzz(func(t *testing.T, file, stat []byte) {
		if l, ok := parseSession(file); ok && (strings.Contains(l.TTY, "..") || strings.HasPrefix(l.TTY, "/") || l.User == "" || l.pid <= 0) {
			t.Errorf("%q gives %+v", file, l)
		}
		if tty := terminalOf(stat); tty != "" && !terminal(tty) {
			t.Errorf("%q gives %q", stat, tty)
		}
	})
}

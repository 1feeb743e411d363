package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"holdfast/lab/stall"
)

// script writes a shell script and returns its path.
func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// runner allows everything below a fresh directory.
func runner(t *testing.T) (*Runner, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := New(dir + "/")
	if err != nil {
		t.Fatal(err)
	}
	return r, dir
}

func TestRunReturnsWhatTheProgramWrote(t *testing.T) {
	r, dir := runner(t)
	path := script(t, dir, "hello", `read line; echo "$1 $line $GREETING"; echo careful >&2; pwd`)
	got, err := r.Run(t.Context(), Command{
		Argv:  []string{path, "one two; rm"},
		Env:   []string{"GREETING=ahoy"},
		Stdin: []byte("from stdin\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	got.Took = 0
	want := Result{Stdout: []byte("one two; rm from stdin ahoy\n/\n"), Stderr: []byte("careful\n")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestTheEnvironmentIsEmptyUnlessGiven(t *testing.T) {
	t.Setenv("HOLDFAST_LEAK", "secret")
	r, err := New("/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Run(t.Context(), Command{Argv: []string{"/usr/bin/env"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Stdout) != 0 {
		t.Errorf("the program saw the environment %q; want none", got.Stdout)
	}
}

func TestNoFileIsInherited(t *testing.T) {
	// One as Go opens it, one as a careless library does.
	file, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	careless, err := syscall.Open("/etc/passwd", syscall.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(careless)
	r, err := New("/bin/ls")
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Run(t.Context(), Command{Argv: []string{"/bin/ls", "/proc/self/fd"}})
	if err != nil {
		t.Fatal(err)
	}
	// 3 is ls reading the directory.
	if want := "0\n1\n2\n3\n"; string(got.Stdout) != want {
		t.Errorf("open files of the program: %q, want %q", got.Stdout, want)
	}
}

func TestFailureNamesThePathTheCodeAndTheLastWords(t *testing.T) {
	r, dir := runner(t)
	path := script(t, dir, "fails", `echo first >&2; echo "disk on fire" >&2; exit 3`)
	result, err := r.Run(t.Context(), Command{Argv: []string{path}})
	var exit *ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("error is %v, want an *ExitError", err)
	}
	if want := (ExitError{Path: path, Code: 3, Stderr: "disk on fire"}); *exit != want {
		t.Errorf("exit error %+v, want %+v", *exit, want)
	}
	if want := fmt.Sprintf("command: %s: exit status 3: disk on fire", path); err.Error() != want {
		t.Errorf("message %q, want %q", err, want)
	}
	if result.Code != 3 {
		t.Errorf("Code is %d, want 3", result.Code)
	}
}

func TestASignalIsNamed(t *testing.T) {
	r, dir := runner(t)
	path := script(t, dir, "dies", `kill -SEGV $$`)
	_, err := r.Run(t.Context(), Command{Argv: []string{path}})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != -1 || !strings.Contains(exit.Signal, "segmentation") {
		t.Errorf("error is %v, want an exit by SIGSEGV", err)
	}
}

// TestTimeLimitKillsTheWholeProcessGroup: a time limit in which a busy machine
// did not start both processes shows nothing, and is doubled.
func TestTimeLimitKillsTheWholeProcessGroup(t *testing.T) {
	r, dir := runner(t)
	child := filepath.Join(dir, "child.pid")
	path := script(t, dir, "hangs", `trap "" TERM; sleep 1000 & echo $! >`+child+`; wait`)
	machine := stall.Test(t, "")
	for limit := time.Second; ; limit *= 2 {
		began := time.Now()
		_, err := r.Run(t.Context(), Command{Argv: []string{path}, Timeout: limit})
		if !errors.Is(err, ErrTimeout) {
			t.Fatalf("error is %v, want ErrTimeout", err)
		}
		ended := time.Now()
		if took := ended.Sub(began); took < limit {
			t.Errorf("took %s", took)
		}
		machine.Judge(t, fmt.Sprintf("a program of at most %v", limit), limit+5*time.Second, began, ended) // well below DefaultTimeout
		if pid, ok := pidIn(child); ok {
			expectGone(t, pid)
			return
		}
		if limit > time.Minute {
			t.Fatalf("it did not start a process within %s", limit)
		}
	}
}

func TestTheEndOfContextKills(t *testing.T) {
	r, dir := runner(t)
	started := filepath.Join(dir, "started")
	path := script(t, dir, "hangs", `echo $$ >`+started+`; exec sleep 1000`)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := r.Run(ctx, Command{Argv: []string{path}})
		done <- err
	}()
	pid := readPID(t, started)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, ErrTimeout) {
		t.Errorf("error is %v, want context.Canceled", err)
	}
	expectGone(t, pid)
}

func TestWhatAProgramLeavesBehindIsKilled(t *testing.T) {
	r, dir := runner(t)
	child := filepath.Join(dir, "child.pid")
	path := script(t, dir, "forks", `sleep 1000 & echo $! >`+child+`; echo done`)
	machine, began := stall.Test(t, ""), time.Now()
	got, err := r.Run(t.Context(), Command{Argv: []string{path}})
	machine.Judge(t, "a program that left a background process behind", 5*time.Second, began, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Stdout) != "done\n" {
		t.Errorf("stdout %q", got.Stdout)
	}
	expectGone(t, readPID(t, child))
}

func TestADaemonHoldingTheOutputDoesNotHoldUs(t *testing.T) {
	r, dir := runner(t)
	child := filepath.Join(dir, "child.pid")
	path := script(t, dir, "daemon", `setsid sh -c 'echo $$ >`+child+`; exec sleep 1000' & while [ ! -s `+child+` ]; do :; done; echo ok`)
	machine, began := stall.Test(t, ""), time.Now()
	got, err := r.Run(t.Context(), Command{Argv: []string{path}, Env: []string{"PATH=/usr/bin:/bin"}, Timeout: 10 * time.Minute})
	ended := time.Now()
	pid := readPID(t, child)
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	if err != nil {
		t.Fatal(err)
	}
	machine.Judge(t, "a program whose daemon holds the output", 10*time.Second, began, ended)
	if string(got.Stdout) != "ok\n" {
		t.Errorf("stdout %q, want ok", got.Stdout)
	}
}

func TestOutputIsBoundedAndTheProgramNotStopped(t *testing.T) {
	r, dir := runner(t)
	path := script(t, dir, "talks", `i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; exit 7`)
	got, err := r.Run(t.Context(), Command{Argv: []string{path}, MaxOutput: 1000, Timeout: 10 * time.Minute})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("error %v, want exit status 7", err)
	}
	if len(got.Stdout) != 1000 || !got.Truncated {
		t.Errorf("kept %d bytes, truncated %t; want 1000, true", len(got.Stdout), got.Truncated)
	}
}

func TestRunsAsAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("changing the user needs root")
		}
		t.Skip("changing the user needs root")
	}
	r, err := New("/usr/bin/id")
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Run(t.Context(), Command{Argv: []string{"/usr/bin/id", "-u"}, User: &User{UID: 65534, GID: 65534}})
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Stdout) != "65534\n" {
		t.Errorf("ran as user %q", got.Stdout)
	}
}

func TestOnlyAllowedProgramsRun(t *testing.T) {
	allowed, other := t.TempDir(), t.TempDir()
	inside := script(t, allowed, "inside", "exit 0")
	outside := script(t, other, "outside", "exit 0")
	for _, link := range []struct{ target, at string }{
		{outside, filepath.Join(allowed, "escape")},
		{inside, filepath.Join(other, "alias")},
	} {
		if err := os.Symlink(link.target, link.at); err != nil {
			t.Fatal(err)
		}
	}
	loose := script(t, allowed, "loose", "exit 0")
	if err := os.Chmod(loose, 0o777); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(allowed, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	replaceable := script(t, open, "replaceable", "exit 0")
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	alternative := filepath.Join(other, "alternative")
	if err := os.Symlink("/bin/true", alternative); err != nil {
		t.Fatal(err)
	}
	r, err := New(allowed+"/", alternative)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		want       error
	}{
		{"below an allowed directory", inside, nil},
		{"a link from elsewhere to below the directory", filepath.Join(other, "alias"), nil},
		{"listed itself, a link to elsewhere", alternative, nil},
		{"elsewhere", outside, ErrNotAllowed},
		{"a link that leaves the directory", filepath.Join(allowed, "escape"), ErrNotAllowed},
		{"dots that leave the directory", allowed + "/../" + filepath.Base(other) + "/outside", ErrNotAllowed},
		{"a shell", "/bin/sh", ErrNotAllowed},
		{"relative", "true", ErrNotAllowed},
		{"everybody may write", loose, ErrNotAllowed},
		{"everybody may replace it", replaceable, ErrNotAllowed},
		{"the directory itself", allowed, ErrNotAllowed},
		{"absent", filepath.Join(allowed, "absent"), os.ErrNotExist},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := r.Run(t.Context(), Command{Argv: []string{test.path}})
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
	t.Run("nil runner", func(t *testing.T) {
		if _, err := (*Runner)(nil).Run(t.Context(), Command{Argv: []string{inside}}); !errors.Is(err, ErrNotAllowed) {
			t.Errorf("error %v, want ErrNotAllowed", err)
		}
	})
	t.Run("nothing to run", func(t *testing.T) {
		if _, err := r.Run(t.Context(), Command{}); err == nil {
			t.Error("an empty argv was accepted")
		}
	})
}

func TestAProgramOfSomebodyElseIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving a file away needs root")
	}
	r, dir := runner(t)
	path := script(t, dir, "theirs", "exit 0")
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := r.Run(t.Context(), Command{Argv: []string{path}})
	if !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), "belongs to user 65534") {
		t.Errorf("error %v, want ErrNotAllowed", err)
	}
}

func TestNewRefusesRelativePaths(t *testing.T) {
	if _, err := New("bin/check"); err == nil {
		t.Error("a relative path was accepted")
	}
}

// readPID waits for a program to write its number.
func readPID(t *testing.T, path string) int {
	t.Helper()
	var pid int
	eventually(t, "a number in "+path, func() (ok bool) { pid, ok = pidIn(path); return ok })
	return pid
}

// pidIn is the number that a program wrote, if it has.
func pidIn(path string) (pid int, ok bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
	return pid, err == nil
}

// expectGone fails unless the process ends.
func expectGone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the end of process %d", pid), func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}

package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asAgent makes the test's own binary an agent that is no root and was given
// capabilities.
const asAgent = "HOLDFAST_TEST_AS_AGENT"

// Two users that need no name.
const (
	agentUser = 65534
	otherUser = 65533
)

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		os.Exit(beAgent())
	}
	os.Exit(m.Run())
}

// beAgent prints what capabilities programs have that it runs, and whether it
// could end one of another user.
func beAgent() int {
	r, err := New("/bin/grep", "/bin/sleep")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	other := &User{UID: otherUser, GID: otherUser}
	for _, c := range []struct {
		name string
		Command
	}{
		{"another's", Command{User: other}},
		{"unprivileged", Command{Unprivileged: true}},
		{"ours", Command{}},
	} {
		c.Argv = []string{"/bin/grep", "CapEff", "/proc/self/status"}
		done, err := r.Run(context.Background(), c.Command)
		fmt.Printf("%s: %s %v\n", c.name, strings.Join(strings.Fields(string(done.Stdout)), " "), err)
	}
	_, err = r.Run(context.Background(), Command{Argv: []string{"/bin/sleep", "3600"}, User: other, Timeout: 100 * time.Millisecond})
	fmt.Printf("killed: %t\n", errors.Is(err, ErrTimeout))
	return 0
}

func TestAProgramOfAnotherUserHasNoneOfOurCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("changing the user needs root")
		}
		t.Skip("changing the user needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	agent := exec.CommandContext(ctx, "/proc/self/exe")
	agent.Env = []string{asAgent + "=1"}
	agent.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: agentUser, Gid: agentUser},
		AmbientCaps: []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL},
	}
	out, err := agent.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	given := fmt.Sprintf("%016x", 1<<unix.CAP_SETUID|1<<unix.CAP_SETGID|1<<unix.CAP_KILL)
	none := strings.Repeat("0", len(given))
	for _, want := range []string{
		"another's: CapEff: " + none + " <nil>\n", "unprivileged: CapEff: " + none + " <nil>\n",
		"ours: CapEff: " + given + " <nil>\n", // or the test would show nothing
		"killed: true\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

func TestAFileThatOthersMayChangeIsRefused(t *testing.T) {
	path := script(t, t.TempDir(), "cluster.yaml", "")
	if err := OnlyOurs(path); err != nil {
		t.Errorf("our own: %v", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := OnlyOurs(path); !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), "everybody may write to it") {
		t.Errorf("one that everybody may write to: %v", err)
	}
	if err := errors.Join(os.Chmod(path, 0o664), os.Chown(path, -1, 12345)); err == nil { // as root
		if err := OnlyOurs(path); !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), "group 12345 may write") {
			t.Errorf("one that a group may write to: %v", err)
		}
		dir := filepath.Dir(path)
		if err := errors.Join(os.Chmod(path, 0o644), os.Chmod(dir, 0o775), os.Chown(dir, -1, 12345)); err != nil {
			t.Fatal(err)
		}
		if err := OnlyOurs(path); !errors.Is(err, ErrNotAllowed) || !strings.Contains(err.Error(), "may write to "+dir) {
			t.Errorf("one that a group may replace: %v", err)
		}
	}
	if err := OnlyOurs(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
}

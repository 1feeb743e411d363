package clock

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever lacks CAP_SYS_TIME is told so, and trying changes nothing.
func TestPermittedNeedsThePrivilegeAndChangesNothing(t *testing.T) {
	if os.Getenv("CLOCK_SAYS_PERMITTED") != "" {
		err := Permitted()
		if _, failed := os.Stdout.WriteString("permitted: " + errorText(err) + "\n"); failed != nil {
			t.Fatal(failed)
		}
		return
	}
	before, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := Permitted(); err != nil && !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v, want nil or EPERM", err)
	}
	after, err := Read()
	if err != nil || after.Frequency != before.Frequency || after.Synchronised != before.Synchronised {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
	args := []string{os.Args[0], "-test.run", "^" + t.Name() + "$"}
	if os.Getuid() == 0 {
		args = append([]string{"setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time"}, args...)
	}
	child := exec.Command(args[0], args[1:]...)
	child.Env = append(os.Environ(), "CLOCK_SAYS_PERMITTED=1")
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if text := string(out); !strings.Contains(text, "permitted: ") || !strings.Contains(text, "operation not permitted") || !strings.Contains(text, "CAP_SYS_TIME") {
		t.Errorf("without the privilege: %s", text)
	}
}

func errorText(err error) string {
	if err == nil {
		return "yes"
	}
	return err.Error()
}

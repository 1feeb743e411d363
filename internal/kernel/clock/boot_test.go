package clock

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A machine that slept: in a time namespace the clock that counts sleep is a day
// ahead, and the one that does not is as it was.
func TestSinceBootCountsTheSleepOfTheMachine(t *testing.T) {
	const slept = 24 * time.Hour
	if os.Getenv("CLOCK_SAYS_SINCE_BOOT") != "" {
		if _, err := os.Stdout.WriteString("since boot " + strconv.FormatInt(int64(SinceBoot()), 10) + "\n"); err != nil {
			t.Fatal(err)
		}
		return
	}
	before := SinceBoot()
	child := exec.Command("unshare", "--time", "--boottime", strconv.Itoa(int(slept/time.Second)), "--fork", os.Args[0], "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), "CLOCK_SAYS_SINCE_BOOT=1")
	out, err := child.CombinedOutput()
	if err != nil {
		if os.Getuid() != 0 && os.Getenv("CI") == "" {
			t.Skipf("a time namespace is root's: %v", err)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	_, text, found := strings.Cut(string(out), "since boot ")
	text, _, _ = strings.Cut(text, "\n")
	nanoseconds, err := strconv.ParseInt(text, 10, 64)
	if !found || err != nil {
		t.Fatalf("the child says %q", out)
	}
	if took := time.Duration(nanoseconds) - before - slept; took < 0 || took > 5*time.Minute {
		t.Errorf("after a sleep of %v the clock is %v ahead of what it was", slept, took+slept)
	}
}

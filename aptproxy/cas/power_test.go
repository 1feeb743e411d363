package cas

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/lab/vm"
)

// verifyEnv makes this test binary a process that reads the store of that
// directory anew and prints what is in it, and "bad" before what is damaged.
const verifyEnv = "CAS_TEST_VERIFY"

func verify(dir string) error {
	s, err := Open(dir, Options{Log: quiet()})
	if err != nil {
		return err
	}
	report, err := s.Verify(context.Background(), 0)
	if err != nil {
		return err
	}
	for _, bad := range report.Bad {
		fmt.Println("bad", bad)
	}
	for _, b := range s.Blobs() {
		fmt.Println(b.Sum)
	}
	return s.Close()
}

// TestAPowerCutLosesNothingThatWasCommitted cuts the power of a machine whose
// disk forgets what was not flushed, and lets some of that survive by chance,
// while blobs are written, in the middle of a flush: a blob that is said to be
// committed before it, its name or its folder is synced is caught. CAS_CUTS says
// how often (2).
func TestAPowerCutLosesNothingThatWasCommitted(t *testing.T) {
	committed := map[string]bool{}
	vm.PowerCuts{
		Cuts: 2, Variable: "CAS_CUTS", Size: 64 << 20,
		Write: func(int) []string { return []string{writeEnv + "=" + vm.PowerDir + "/store"} },
		Lines: 1, Later: 2 * time.Second,
		Verify: []string{verifyEnv + "=" + vm.PowerDir + "/store"},
		Check: func(cut int, safe []string, found string) {
			for _, sum := range safe {
				committed[sum] = true
			}
			there := map[string]bool{}
			for line := range strings.Lines(found) {
				line = strings.TrimSpace(line)
				if strings.HasPrefix(line, "bad ") {
					t.Errorf("cut %d: a blob is damaged under its name: %s", cut, line)
				}
				there[line] = true
			}
			for sum := range committed {
				if !there[sum] {
					t.Errorf("cut %d: %s was committed and is gone", cut, sum)
				}
			}
		},
	}.Run(t)
}

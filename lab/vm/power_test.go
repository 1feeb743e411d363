package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What TestMain does in the machine of a power cut: write files into that
// directory for ever, and print which are safe, or print which are there.
const (
	honestEnv = "VM_TEST_HONEST"
	earlyEnv  = "VM_TEST_EARLY" // prints before it syncs
	thereEnv  = "VM_TEST_THERE"
)

// inPowerCut does what the environment says; done is false when it says nothing.
func inPowerCut() (done bool, err error) {
	for env, do := range map[string]func(string) error{
		honestEnv: func(dir string) error { return writeFiles(dir, false) },
		earlyEnv:  func(dir string) error { return writeFiles(dir, true) },
		thereEnv:  listFiles,
	} {
		if dir := os.Getenv(env); dir != "" {
			return true, do(dir)
		}
	}
	return false, nil
}

const wholeFile = 64 << 10 // bytes

func writeFiles(dir string, early bool) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	for n := 0; ; n++ {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(n)))
		if err != nil {
			return err
		}
		if _, err := f.Write([]byte(strings.Repeat("x", wholeFile))); err != nil {
			return err
		}
		if early {
			fmt.Println(n)
			<-time.After(50 * time.Millisecond) // until that is heard outside, before the power goes
		}
		if err := errors.Join(f.Sync(), folder.Sync(), f.Close()); err != nil {
			return err
		}
		if !early {
			fmt.Println(n)
		}
	}
}

func listFiles(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range list {
		if data, err := os.ReadFile(filepath.Join(dir, entry.Name())); err == nil && string(data) == strings.Repeat("x", wholeFile) {
			fmt.Println(entry.Name())
		}
	}
	return nil
}

// A program that says too early that something is safe loses it by one of a few
// cuts; one that syncs before loses nothing by any.
func TestPowerCutsCatchWhoSaysTooEarlyThatItIsSafe(t *testing.T) {
	for env, early := range map[string]bool{honestEnv: false, earlyEnv: true} {
		t.Run(env, func(t *testing.T) {
			const cuts = 3 // one may fall where nothing is under way
			looked, lostByAll := 0, 0
			PowerCuts{
				Cuts: cuts, Size: 64 << 20,
				Write: func(int) []string { return []string{env + "=" + PowerDir} },
				Lines: 3, Later: 200 * time.Millisecond,
				Verify: []string{thereEnv + "=" + PowerDir},
				Check: func(cut int, safe []string, there string) {
					looked++
					found := strings.Fields(there)
					lost := slices.DeleteFunc(slices.Clone(safe), func(name string) bool { return slices.Contains(found, name) })
					lostByAll += len(lost)
					if !early && len(lost) > 0 || len(safe) < 3 {
						t.Errorf("cut %d: of %d files %v are lost", cut, len(safe), lost)
					}
				},
			}.Run(t)
			if looked != cuts {
				t.Errorf("%d of %d cuts were looked at", looked, cuts)
			}
			if early && lostByAll == 0 {
				t.Error("what was never synced is there after every cut")
			}
		})
	}
}

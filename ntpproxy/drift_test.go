package ntpproxy

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A second name for the old file shows whether it was written into.
func TestDriftFileIsReplacedAndNeverWrittenInto(t *testing.T) {
	path := filepath.Join(t.TempDir(), driftFile)
	if err := (drift{-12.5, 0.01}).write(path); err != nil {
		t.Fatal(err)
	}
	old := path + ".old"
	if err := os.Link(path, old); err != nil {
		t.Fatal(err)
	}
	if err := (drift{17, 0.02}).write(path); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]drift{old: {-12.5, 0.01}, path: {17, 0.02}} {
		if got, err := readDrift(name); err != nil || got != want {
			t.Errorf("%s holds %+v (%v), want %+v", filepath.Base(name), got, err, want)
		}
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 2 {
		t.Errorf("the directory holds %v (%v), want the two alone", left, err)
	}
}

// driftEnv makes this test binary write a drift file again and again.
const driftEnv = "NTPPROXY_TEST_DRIFT"

// Killed at any moment, the writer leaves the old content or the new.
func TestDriftFileIsWholeWheneverItsWriterIsKilled(t *testing.T) {
	if path := os.Getenv(driftEnv); path != "" {
		fmt.Println("ready")
		for i := 0; ; i = 1 - i {
			if err := (drift{float64(i), 0.5}).write(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	path := filepath.Join(t.TempDir(), driftFile)
	if err := (drift{0, 0.5}).write(path); err != nil {
		t.Fatal(err)
	}
	const kills = 40
	for range kills {
		writer := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
		writer.Env = append(os.Environ(), driftEnv+"="+path)
		out, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		var ready string
		_, err = fmt.Fscanln(out, &ready)
		spin(time.Duration(rand.IntN(2000)) * time.Microsecond)
		_ = writer.Process.Kill()
		_ = writer.Wait()
		if err != nil {
			t.Fatal(err)
		}
		d, err := readDrift(path)
		if err != nil || d.skew != 0.5 || d.frequency != 0 && d.frequency != 1 {
			t.Fatalf("a writer that was killed leaves %+v (%v)", d, err)
		}
	}
}

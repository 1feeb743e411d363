package vm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// Probe says what keeps this process from making virtual machines, all of it;
// nil when nothing does. It changes nothing on the host.
func Probe() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("vm: machines run Debian's kernel for amd64; this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	if IsInside() {
		return errors.New("vm: this is a virtual machine already")
	}
	var problems []error
	for _, tool := range []struct{ program, debian string }{
		{emulatorProgram, "qemu-system-x86"}, {"depmod", "kmod"}, {"xz", "xz-utils"},
		{"dpkg-deb", "dpkg"}, {"apt-get", "apt"}, {"go", "golang-go"},
	} {
		if _, err := exec.LookPath(tool.program); err != nil {
			problems = append(problems, fmt.Errorf("%w (Debian package %s)", err, tool.debian))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("vm: this machine can't run virtual ones: %w", err)
	}
	return nil
}

// Require skips the test, saying why, where no virtual machine can be made; in
// CI (the environment variable CI is set) it fails it. LAB=off in the
// environment skips every test that needs a machine.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("LAB") == "off" {
		t.Skip("vm: switched off by LAB=off")
	}
	err := Probe()
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// NewTest boots a machine for one test, where [Require] allows it, and ends it
// with the test; when the test failed, it first logs the end of its console and
// of what its processes printed.
func NewTest(t testing.TB, o Options) *Machine {
	t.Helper()
	return NewTests(t, o)[0]
}

// NewTests is [NewTest] for several machines, booted at the same time.
func NewTests(t testing.TB, options ...Options) []*Machine {
	t.Helper()
	Require(t)
	var machines []*Machine
	for _, o := range options {
		m, err := New(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		machines = append(machines, m)
	}
	t.Cleanup(func() {
		if t.Failed() {
			var logs strings.Builder
			for _, m := range machines {
				if err := m.DumpLogs(&logs, 30); err != nil {
					t.Log(err)
				}
			}
			t.Logf("what the machines printed:\n%s", logs.String())
		}
		if err := PowerOff(machines...); err != nil {
			t.Error(err)
		}
	})
	if err := PowerOn(t.Context(), machines...); err != nil {
		t.Fatal(err)
	}
	return machines
}

// NewTestDisk makes a disk for one test.
func NewTestDisk(t testing.TB, o DiskOptions) *Disk {
	t.Helper()
	d, err := NewDisk(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

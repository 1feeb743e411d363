package logrelay

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asMortal does something with the modes of files standing for root, too.
func asMortal(t *testing.T, do func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		t.Fatal(err)
	}
	fewer := had
	fewer[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&head, &fewer[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&head, &had[0]); err != nil {
			t.Error(err)
		}
	}()
	do()
}

// TestAFolderThatCanNotBeReadStopsNoFiles: one of an admin, among those of hosts.
// It fails if the output begins only where all can be read.
func TestAFolderThatCanNotBeReadStopsNoFiles(t *testing.T) {
	x := newStage(t, `{files: {path: "{host}/{app}.log"}}`)
	defer x.end()
	backup := filepath.Join(x.hosts, "backup")
	if err := errors.Join(os.MkdirAll(filepath.Join(x.hosts, "cn1"), 0o755), os.Mkdir(backup, 0),
		os.WriteFile(filepath.Join(x.hosts, "cn1", "sshd.log.20261123T000000.000.zst"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(backup, 0o700) }) // so that it can be removed
	asMortal(t, func() {
		if _, err := os.ReadDir(backup); !errors.Is(err, os.ErrPermission) {
			t.Fatalf("it can be read: %v", err)
		}
		o := beginFiles(t, x)
		if _, err := o.fileOf(named("cn1", "sshd", time.Now())); err != nil {
			t.Error(err)
		}
	})
}

package vrrp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/runfile"
)

// What is kept below the run directory, in its own folder.
const (
	dirName     = "vrrp"
	lockFile    = "lock"    // whoever changes addresses holds it; says who
	guardFile   = "guard"   // every guard holds it, shared
	restartFile = "restart" // the mark of `holdfast restart`
	leftFile    = "left"    // until when a successor may adopt what a restart left
	ordersFile  = "orders"  // what admins asked for, by Pull and Yield
)

var errLocked = errors.New("another process has the lock")

// ErrRunning: another process runs the virtual routers of the run directory.
var ErrRunning = errors.New("another process runs the virtual routers")

// lockExclusive takes a lock without waiting; errLocked when another has it.
// Closing the file, or the end of the process, gives it back.
func lockExclusive(path string) (*os.File, error) { return flock(path, syscall.LOCK_EX) }

func lockShared(path string) (*os.File, error) { return flock(path, syscall.LOCK_SH) }

func flock(path string, how int) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
	if err == nil {
		return file, nil
	}
	file.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// takeOver takes the service's lock. A predecessor that is about to end and a
// guard at work are waited for, up to limit.
func takeOver(dir string, limit time.Duration) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	deadline := time.Now().Add(limit)
	for {
		file, err := lockExclusive(path)
		if err == nil {
			return file, sign(file)
		}
		if !errors.Is(err, errLocked) {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("vrrp: %w of %s: %s", ErrRunning, dir, runningWords(path))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func runningWords(path string) string {
	if pid := signedBy(path); pid != 0 {
		return fmt.Sprintf("process %d; stop it first, or give this one another --run-dir", pid)
	}
	return "stop it first, or give this one another --run-dir"
}

// sign writes who has the lock.
func sign(file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err := file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return err
}

func signedBy(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid <= 0 {
		return 0
	}
	return pid
}

// Running tells which process runs the virtual routers of a run directory; 0:
// none.
func Running(runDir string) (pid int, err error) {
	path := filepath.Join(runDir, dirName, lockFile)
	file, err := lockExclusive(path)
	switch {
	case err == nil:
		file.Close()
		return 0, nil
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case errors.Is(err, errLocked):
		if pid := signedBy(path); pid != 0 {
			return pid, nil
		}
		return 0, fmt.Errorf("vrrp: %s is locked, and does not say by whom", path)
	}
	return 0, err
}

// MaxGrace is the longest time that a restart can take without its addresses
// moving: peers wait for the interval of the last advert, and version 3 can't
// say more (RFC 9568 §5.2.7).
const MaxGrace = maxIntervalV3

// MarkRestart says that the service is to end as for a restart: it leaves its
// addresses where they are, for a successor that comes within grace. The mark
// is good for as long, and for one end.
func MarkRestart(runDir string, grace time.Duration) error {
	if grace <= 0 || grace > MaxGrace {
		return fmt.Errorf("vrrp: grace of %s: the range is above 0 to %s", grace, MaxGrace)
	}
	up, err := uptime()
	if err != nil {
		return err
	}
	dir := filepath.Join(runDir, dirName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return runfile.Replace(filepath.Join(dir, restartFile), fmt.Appendf(nil, "%d %d\n", (up+grace).Milliseconds(), grace.Milliseconds()))
}

// restartMark takes the mark away and says how long a successor has from now;
// false: there is none that is good.
func restartMark(dir string) (grace time.Duration, ok bool) {
	path := filepath.Join(dir, restartFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	_ = os.Remove(path) // one that stays is too old soon
	var until, given int64
	if _, err := fmt.Sscanf(string(text), "%d %d", &until, &given); err != nil {
		return 0, false
	}
	up, err := uptime()
	if err != nil || up > time.Duration(until)*time.Millisecond {
		return 0, false
	}
	return min(time.Duration(given)*time.Millisecond, MaxGrace), true
}

// leaveFor writes that addresses stay for a successor that comes within grace.
// The guard says the same for as long as it lives, but systemd may have ended
// it (KillMode=control-group).
func leaveFor(dir string, grace time.Duration) error {
	up, err := uptime()
	if err != nil {
		return err
	}
	return runfile.Replace(filepath.Join(dir, leftFile), fmt.Appendf(nil, "%d\n", (up+grace).Milliseconds()))
}

// leftJustNow takes that word away and tells whether it still holds.
func leftJustNow(dir string) bool {
	path := filepath.Join(dir, leftFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	_ = os.Remove(path) // one that stays is too old soon
	until, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	up, failed := uptime()
	return err == nil && failed == nil && up <= time.Duration(until)*time.Millisecond
}

// uptime is the time since the boot, which all processes count alike and
// nobody can set.
func uptime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("read /proc/uptime: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

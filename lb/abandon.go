package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"holdfast/internal/kernel/ipvs"
	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/sysctl"
	"holdfast/internal/runfile"
)

// lockFile says by its lock that a Service is at work, or Abandon.
const lockFile = "lock"

// lockLimit is how long a successor waits for Abandon to end.
const lockLimit = 5 * time.Second

var errLocked = errors.New("another process has the load balancer")

// lock takes the lock of a run directory; the end of the process gives it back.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errLocked
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// lockSoon waits a while for the lock.
func lockSoon(dir string) (*os.File, error) {
	for deadline := time.Now().Add(lockLimit); ; time.Sleep(20 * time.Millisecond) {
		f, err := lock(dir)
		if !errors.Is(err, errLocked) || time.Now().After(deadline) {
			return f, err
		}
	}
}

// Abandon ends what a director that was killed left in the kernel, once its
// addresses are withdrawn: its tables are in force still, and it would direct
// once more what the next director sends to it as a real server. Like a director
// that leaves, it goes on for a second with what is under way, gives nobody new
// to others meanwhile, and then directs nothing. What makes this node a real
// server stays. It does nothing when a Service is at work in the run directory,
// or none ever was.
func Abandon(ctx context.Context, runDir string, log *slog.Logger) error {
	dir := filepath.Join(runDir, "lb")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	held, err := lock(dir)
	if errors.Is(err, errLocked) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lb: abandon: %w", err)
	}
	defer held.Close()
	handle, err := ipvs.Open()
	if errors.Is(err, ipvs.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lb: abandon: %w", err)
	}
	defer handle.Close()
	at, err := runfile.Here()
	if err != nil {
		return fmt.Errorf("lb: abandon: %w", err)
	}
	owner, _, err := ipvs.NewOwner(handle, tablesJournal(dir, at))
	if err != nil {
		return fmt.Errorf("lb: abandon: %w", err)
	}
	links, err := link.Open()
	if err != nil {
		return fmt.Errorf("lb: abandon: %w", err)
	}
	defer links.Close()
	net, err := sysctl.Open()
	if err != nil {
		return fmt.Errorf("lb: abandon: %w", err)
	}
	defer net.Close()
	l := leftover{tables: owner, addresses: links, sysctls: net, log: log.With("service", "lb", "part", "guard")}
	if err := l.abandon(ctx, defaultHandover); err != nil {
		return fmt.Errorf("lb: abandon: %w", err)
	}
	return nil
}

// leftover is what Abandon works on.
type leftover struct {
	tables interface {
		Ours() ([]ipvs.Observed, error)
		Set([]ipvs.Service) ([]ipvs.Change, error)
	}
	addresses interface{ Addrs() ([]link.Addr, error) }
	sysctls   sysctls
	log       *slog.Logger
}

func (l *leftover) abandon(ctx context.Context, handover time.Duration) error {
	ours, err := l.tables.Ours()
	if err != nil || len(ours) == 0 {
		return err
	}
	if on, err := l.sysctls.Get(BackupOnly); err != nil || on == 1 {
		return err
	}
	addrs, err := l.addresses.Addrs()
	if err != nil {
		return err
	}
	var left []ipvs.Service
	for _, o := range ours {
		s := o.Service
		s.Servers = slices.Clone(s.Servers)
		for i := range s.Servers {
			if !slices.ContainsFunc(addrs, func(a link.Addr) bool { return a.Prefix.Addr() == s.Servers[i].Addr.Addr() }) {
				s.Servers[i].Weight = 0
			}
		}
		left = append(left, s)
	}
	_, err = l.tables.Set(left)
	timer := time.NewTimer(handover)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
	changed, err2 := l.sysctls.Set(BackupOnly, 1)
	l.log.Info("a killed director's tables are in force no more", "changed", changed)
	return errors.Join(err, err2)
}

// tablesJournal says which services of the tables are ours.
func tablesJournal(dir string, at runfile.Origin) runfile.File {
	return runfile.File{Path: filepath.Join(dir, "ipvs"), At: at}
}

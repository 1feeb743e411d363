package raftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/internal/state"
)

// Scheduled snapshots: what protects from an admin's mistake, and from the loss
// of all servers if the directory is on other disks.

const (
	conditionBackup = "raftstore.backup"
	backupPrefix    = "holdfast-"
	backupSuffix    = ".snapshot"
	backupTemp      = ".holdfast-snapshot-"
	backupTime      = "20060102T150405Z"
	backupLook      = time.Minute // how often the schedule is looked at
)

// Backups say where and when snapshots are kept.
type Backups struct {
	Directory string        // DataDir/snapshots when ""
	Every     time.Duration // 0: never
	Keep      time.Duration // the newest is kept however old it is
}

// defaultBackups are in force unless the cluster file says otherwise.
func defaultBackups() Backups { return Backups{Every: 6 * time.Hour, Keep: 24 * time.Hour} }

func (b Backups) validate() error {
	var errs []error
	if b.Every != 0 && (b.Every < time.Minute || b.Every > 30*24*time.Hour) {
		errs = append(errs, fmt.Errorf("every %v: must be 1m to 720h, or 0s for never", b.Every))
	}
	if b.Every != 0 && (b.Keep < b.Every || b.Keep > 10*365*24*time.Hour) {
		errs = append(errs, fmt.Errorf("keep %v: must be at least as long as every (%v), and at most ten years", b.Keep, b.Every))
	}
	if b.Directory != "" && !filepath.IsAbs(b.Directory) {
		errs = append(errs, fmt.Errorf("directory %q: must be absolute", b.Directory))
	}
	return errors.Join(errs...)
}

// backup is a scheduled snapshot that is there.
type backup struct {
	name string
	at   time.Time
}

// backupName is the name of this server's snapshot of a time; servers may share a
// directory.
func (c Config) backupName(at time.Time) string {
	return backupPrefix + c.Cluster + "-" + c.Node + "-" + at.UTC().Format(backupTime) + backupSuffix
}

// parseBackup reads a file's name; false when it is none of this server's. Those of
// earlier versions do not say whose they are and count as everybody's.
func (c Config) parseBackup(name string) (backup, bool) {
	rest, ok := strings.CutPrefix(name, backupPrefix+c.Cluster+"-")
	rest, ok2 := strings.CutSuffix(rest, backupSuffix)
	if !ok || !ok2 {
		return backup{}, false
	}
	at, err := time.Parse(backupTime, strings.TrimPrefix(rest, c.Node+"-"))
	return backup{name, at}, err == nil
}

// tempName is what a snapshot of this server is called while it is written, but for
// a number behind it. No '@' can stand in a name, so that it is nobody else's.
func (c Config) tempName() string { return backupTemp + c.Cluster + "@" + c.Node + "@" }

// halfWritten tells whether a file is a snapshot that a crash of this server left.
// Those of earlier versions, with a number behind the prefix, or behind the node's
// name, do not say for certain whose they are: another server may be writing one,
// for less than a day.
func (c Config) halfWritten(f fs.DirEntry, now time.Time) bool {
	if number, ours := strings.CutPrefix(f.Name(), c.tempName()); ours {
		return isNumber(number)
	}
	rest, ok := strings.CutPrefix(f.Name(), backupTemp)
	if !ok || !isNumber(strings.TrimPrefix(rest, c.Node+"-")) {
		return false
	}
	st, err := f.Info()
	return err == nil && now.Sub(st.ModTime()) > 24*time.Hour
}

func isNumber(text string) bool { return text != "" && strings.Trim(text, "0123456789") == "" }

// due tells whether a snapshot is called for. What was made in the future, by a
// clock that was wrong, does not count.
func (b Backups) due(there []backup, now time.Time) bool {
	for _, f := range there {
		if !f.at.After(now) && now.Sub(f.at) < b.Every {
			return false
		}
	}
	return true
}

// outdated are the snapshots that are kept no longer; never the newest.
func (b Backups) outdated(there []backup, now time.Time) []backup {
	sorted := slices.SortedFunc(slices.Values(there), func(x, y backup) int { return cmp.Compare(y.at.UnixNano(), x.at.UnixNano()) })
	var old []backup
	for i, f := range sorted {
		if i > 0 && now.Sub(f.at) > b.Keep {
			old = append(old, f)
		}
	}
	return old
}

// backUp keeps the schedule until ctx ends.
func (e *engine) backUp(ctx context.Context) {
	s := e.store
	if s.config.Backups.Every == 0 || s.config.Trust == nil {
		return // without certificates there is no key
	}
	for {
		err := s.backUpOnce(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			s.metrics.backupsFailed.Inc()
			s.log.Error("no scheduled snapshot was made", "error", err)
			s.board.Raise(conditionBackup, health.Warning, fmt.Sprintf("no scheduled snapshot was made: %v. Older ones are kept; it is tried again every minute", err))
		} else if err == nil {
			s.board.Clear(conditionBackup)
		}
		wait := backupLook
		if s.state.Snapshot().Index() == 0 { // the first is not to wait for a look
			wait = time.Second
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// backUpOnce makes a snapshot if one is due, and removes what is outdated.
func (s *Store) backUpOnce(ctx context.Context, now time.Time) error {
	s.backingUp.Lock() // one at a time: what another has half written is no leftover
	defer s.backingUp.Unlock()
	b := s.config.Backups
	snap := s.state.Snapshot()
	if snap.Index() == 0 {
		return nil // nothing to keep yet
	}
	there, err := s.config.listBackups(now)
	if err != nil {
		return err
	}
	if b.due(there, now) {
		f, err := s.writeBackup(ctx, snap, now)
		if err != nil {
			return err
		}
		there = append(there, f)
	}
	for _, old := range b.outdated(there, now) {
		err := os.Remove(filepath.Join(b.Directory, old.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // another server's that shares the directory
			return err
		}
	}
	return nil
}

// listBackups lists what is there of this server's, makes the directory, and
// removes what a crash left half written.
func (c Config) listBackups(now time.Time) (there []backup, err error) {
	dir := c.Backups.Directory
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if c.halfWritten(f, now) {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
				return nil, err
			}
		}
		if b, ok := c.parseBackup(f.Name()); ok && f.Type().IsRegular() {
			there = append(there, b)
		}
	}
	return there, nil
}

// backupKey is what a snapshot is sealed with now.
func (c Config) backupKey() ([]byte, error) {
	if c.BackupKey == nil {
		return c.Trust.GossipKey(), nil
	}
	key, err := c.BackupKey()
	if err != nil {
		return nil, fmt.Errorf("the key to seal it with: %w", err)
	}
	return key, nil
}

// writeBackup writes a sealed snapshot, reads it back from the disk and
// verifies it, and only then gives it its name.
func (s *Store) writeBackup(ctx context.Context, snap *state.Snapshot, now time.Time) (_ backup, err error) {
	dir := s.config.Backups.Directory
	secret, err := s.config.backupKey()
	if err != nil {
		return backup{}, err
	}
	tmp, err := os.CreateTemp(dir, s.config.tempName())
	if err != nil {
		return backup{}, err
	}
	defer func() {
		err = errors.Join(err, tmp.Close())
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	sealed, err := Seal(tmp, secret)
	if err != nil {
		return backup{}, err
	}
	if _, err := snap.WriteTo(&contextWriter{ctx, sealed}); err != nil {
		return backup{}, err
	}
	if err := errors.Join(sealed.Close(), tmp.Sync()); err != nil {
		return backup{}, err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return backup{}, err
	}
	forgetCached(tmp) // or it would be read back from memory
	plain, err := OpenSealed(tmp, secret)
	if err != nil {
		return backup{}, err
	}
	info, err := state.Inspect(plain)
	if err == nil && info.Index != snap.Index() {
		err = fmt.Errorf("it has entry %d, and %d was written", info.Index, snap.Index())
	}
	if err != nil {
		return backup{}, fmt.Errorf("what was written does not verify: %w", err)
	}
	f := backup{s.config.backupName(now), now}
	if err := os.Rename(tmp.Name(), filepath.Join(dir, f.name)); err != nil {
		return backup{}, err
	}
	s.metrics.backupTime.Set(float64(now.Unix()))
	s.metrics.backupBytes.Set(float64(info.Bytes))
	s.log.Info("scheduled snapshot written and verified", "path", filepath.Join(dir, f.name), "index", info.Index, "bytes", info.Bytes)
	return f, durable.SyncDir(dir)
}

// forgetCached has the kernel forget what it has of a file in memory, as far as
// that is on the disk already (posix_fadvise, POSIX_FADV_DONTNEED).
func forgetCached(f *os.File) {
	const dontNeed = 4
	_, _, _ = syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0)
}

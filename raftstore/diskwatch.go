package raftstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"holdfast/internal/health"
)

// The shell around disk.go: looks at the disk, and acts on what it is judged to
// be on this server.

const probeName = ".probe"

// diskHealth is what this server knows of its disk.
type diskHealth struct {
	mu     sync.Mutex
	judge  diskJudge
	last   look
	hung   bool   // a write to the log has not ended
	failed string // the last write to the log since the last look that failed
	stale  error  // why Raft does not know what its log ends with; nil: it does
}

// stands notes why Raft no longer knows what its log ends with, or, by nil, that
// it does.
func (d *diskHealth) stands(stale error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stale = stale
}

// anew is why this server should begin anew, now that its disk is well; nil: it
// need not, or the disk is not.
func (d *diskHealth) anew() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung || d.judge.state == diskSick {
		return nil
	}
	return d.stale
}

// stands implements suffixLog.stale. A damage ends the store at once: who waits
// for the disk to be well would wait for ever, since what can't be written for it
// is tried again and again.
func (e *engine) stands(stale error) {
	if errors.Is(stale, ErrDamaged) {
		e.damaged(stale)
		return
	}
	e.disk.stands(stale)
}

// fitness is how fit the disk is, and why it is no better.
func (d *diskHealth) fitness() (fitness, string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.judge.state, d.judge.why
}

// wrote notes how a write to the log or of a vote ended; a failure counts at
// once.
func (d *diskHealth) wrote(err error) {
	if err == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = err.Error()
	d.judge.step(look{Trouble: d.failed}, time.Now())
}

// hangs notes whether a write to the log hangs.
func (d *diskHealth) hangs(hung bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hung = hung; hung {
		d.judge.step(look{Trouble: "a write to the log does not end"}, time.Now())
	}
}

// looked takes a look, together with what writes met since the last one.
func (d *diskHealth) looked(l look) (before, after fitness) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.hung:
		l.Trouble = "a write to the log does not end"
	case d.failed != "":
		l.Trouble = d.failed
	}
	d.failed = ""
	before = d.judge.state
	d.judge.step(l, time.Now())
	d.last = l
	return before, d.judge.state
}

// beginDiskWatch has the disk watched from before the first file is opened, which
// a disk that hangs holds up for as long.
func (e *engine) beginDiskWatch(ctx context.Context) {
	ctx, e.unwatch = context.WithCancel(context.WithoutCancel(ctx))
	e.group.Go(func() { e.watchDisk(ctx) })
}

// watchDisk looks at the disk until ctx ends. A look writes to it and so can
// hang; while one does, there is no second.
func (e *engine) watchDisk(ctx context.Context) {
	s := e.store
	defer s.board.Clear(conditionDisk)
	for {
		l := e.lookAtDisk(ctx)
		if ctx.Err() != nil {
			return
		}
		before, after := e.disk.looked(l)
		e.tellDisk(before, after, l)
		if after != diskFit {
			e.shedForDisk(l)
		}
		if err := e.disk.anew(); err != nil {
			e.damaged(fmt.Errorf("the log begins anew, and nothing is lost: %w", err))
		}
		if !sleep(ctx, s.times.plan/2) {
			return
		}
	}
}

// lookAtDisk looks; when that does not end in time it says so, and waits for
// the end while it goes on saying so. When ctx ends it waits for a look under way,
// or it would touch the directory after the store has ended; not for a disk that
// hangs.
func (e *engine) lookAtDisk(ctx context.Context) look {
	s := e.store
	done := make(chan look, 1)
	go func() { done <- s.look(s.config.dir()) }()
	for {
		timer := time.NewTimer(s.times.disk)
		select {
		case l := <-done:
			timer.Stop()
			return l
		case <-ctx.Done():
			timer.Stop()
			select {
			case <-done:
			case <-time.After(min(s.times.disk, stopTimeout/2)):
			}
			return look{}
		case <-timer.C:
			l := look{Trouble: fmt.Sprintf("a write did not end within %v", s.times.disk)}
			before, after := e.disk.looked(l)
			e.tellDisk(before, after, l)
		}
	}
}

// probeDisk writes a block where there was none, as the log does, and asks how
// much space is left.
func probeDisk(dir string) look {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return look{Trouble: (&os.PathError{Op: "statfs", Path: dir, Err: err}).Error()}
	}
	l := look{Free: int64(st.Bavail) * st.Bsize, Size: int64(st.Blocks) * st.Bsize}
	if err := writeProbe(filepath.Join(dir, probeName)); err != nil {
		l.Trouble = err.Error()
	}
	return l
}

func writeProbe(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// tellDisk tells the admin what changed.
func (e *engine) tellDisk(before, after fitness, l look) {
	s := e.store
	if l.Size > 0 { // a disk that hangs does not tell
		s.metrics.diskFree.Set(float64(l.Free))
	}
	s.metrics.diskFitness.Set(float64(after))
	_, why := e.disk.fitness()
	switch {
	case after != diskFit:
		severity := health.Warning
		if after == diskSick {
			severity = health.Error
		}
		s.board.Raise(conditionDisk, severity, fmt.Sprintf(
			"the disk of %s is %v: %s. %s; look at the disk and make room on it", s.config.dir(), after, why, e.role(after)))
	case before != diskFit:
		s.board.Clear(conditionDisk)
	}
	if before != after {
		s.log.Warn("the fitness of the disk changed", "was", before.String(), "is", after.String(), "why", why, "path", s.config.dir())
	}
}

// role says what this server still does.
func (e *engine) role(f fitness) string {
	r := e.running.Load()
	switch {
	case r == nil:
		return "The store of this server is not open yet"
	case r.State() == raft.Leader:
		return "This server leads until another one with a better disk can"
	case f == diskSick:
		return "This server does not lead, and has no vote while the others can spare it"
	}
	return "This server leaves the lead to others, and its vote while they can spare it"
}

// shedForDisk has others on the disk make room.
func (e *engine) shedForDisk(l look) {
	s := e.store
	missing := l.missing()
	if missing == 0 || l.Size == 0 {
		return
	}
	consumers := append(slices.Clone(s.config.Consumers), s.config.backupsAsConsumer())
	if freed, names := shed(consumers, missing); freed > 0 {
		s.log.Warn("room was made on the disk", "freed_bytes", freed, "by", strings.Join(names, ", "), "path", s.config.dir())
	}
}

// yieldForDisk hands the leadership to a server with a better disk. Without an
// heir it is kept: a sick disk fails the next write, by which Raft steps down. It
// tells whether the leadership was handed over. The caller holds mayLead.
func (e *engine) yieldForDisk(ctx context.Context, v view) bool {
	s := e.store
	if v.Disks[v.Self] == diskFit {
		return false
	}
	heir, found := v.heir()
	if !found {
		return false
	}
	_, why := e.disk.fitness()
	ctx, cancel := context.WithTimeout(ctx, s.times.transfer)
	defer cancel()
	if err := e.transfer(ctx, heir); err != nil {
		s.log.Warn("the leadership was not handed over for the sake of the disk; trying again", "to", heir.Name, "error", err)
		return false
	}
	s.log.Warn("leadership handed over for the sake of the disk", "to", heir.Name, "why", why)
	return true
}

// mayStand tells whether this server may ask for votes. With a sick disk it may
// not: it could win, since it has what it acknowledged, fail at its first write,
// and win again (hashicorp/raft issue 614). With a disk that is low it leaves
// the first elections after a leader was lost to others.
func (e *engine) mayStand() error {
	f, why := e.disk.fitness()
	if f == diskSick {
		return fmt.Errorf("this server stands for no election, its disk is sick: %s", why)
	}
	r := e.running.Load()
	if f == diskLow && r != nil {
		if heard := r.LastContact(); !heard.IsZero() && time.Since(heard) < e.store.times.noLeader {
			return fmt.Errorf("this server leaves the election to others, its disk is low: %s", why)
		}
	}
	return nil
}

// steadyStable keeps a term and a vote until the disk takes them: a term that
// can't be written makes hashicorp/raft panic, which would end the node's other
// services too. A server that waits here neither votes nor leads, as it must.
type steadyStable struct {
	checkedStable
	ended <-chan struct{} // Raft is being stopped
	wrote func(error)
}

// retryStable is how long a vote that could not be written waits.
const retryStable = 100 * time.Millisecond

// Set implements raft.StableStore; it blocks until the value is on the disk.
func (s steadyStable) Set(key, value []byte) error {
	for {
		err := s.checkedStable.Set(key, value)
		s.wrote(err)
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			// Neither answer would be true. Raft's goroutine ends, with what it
			// deferred, and the stop does not wait for it.
			runtime.Goexit()
		case <-time.After(retryStable):
		}
	}
}

// SetUint64 implements raft.StableStore; it blocks until the value is on the disk.
func (s steadyStable) SetUint64(key []byte, value uint64) error {
	return s.Set(key, bigEndian(value))
}

// backupsAsConsumer are the scheduled snapshots: all but the newest can go.
// Those on another disk are none of this one's.
func (c Config) backupsAsConsumer() Consumer {
	old := func() (list []backup) {
		files, err := os.ReadDir(c.Backups.Directory)
		if err != nil || !sameDisk(c.Backups.Directory, c.dir()) {
			return nil
		}
		var there []backup
		for _, f := range files {
			if b, ok := c.parseBackup(f.Name()); ok {
				there = append(there, b)
			}
		}
		slices.SortFunc(there, func(a, b backup) int { return a.at.Compare(b.at) })
		return there[:max(0, len(there)-1)]
	}
	bytesOf := func(b backup) int64 {
		st, err := os.Stat(filepath.Join(c.Backups.Directory, b.name))
		if err != nil {
			return 0
		}
		return st.Size()
	}
	return Consumer{
		Name: "the scheduled snapshots",
		Bytes: func() (sum int64) {
			for _, b := range old() {
				sum += bytesOf(b)
			}
			return sum
		},
		Shed: func(want int64) (freed int64) {
			for _, b := range old() { // the oldest first
				size := bytesOf(b)
				if freed < want && os.Remove(filepath.Join(c.Backups.Directory, b.name)) == nil {
					freed += size
				}
			}
			return freed
		},
	}
}

// sameDisk tells whether two files are on one file system.
func sameDisk(a, b string) bool {
	var x, y syscall.Stat_t
	return syscall.Stat(a, &x) == nil && syscall.Stat(b, &y) == nil && x.Dev == y.Dev
}

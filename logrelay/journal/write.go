package journal

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/internal/durable"
)

// Run writes to the disk until ctx ends; what was appended by then is written.
// It returns nil: a write that fails is told to those who wait for it and to
// Committed, and the next is tried in a new segment.
func (j *Journal) Run(ctx context.Context) error {
	defer j.abandon()
	for {
		select {
		case <-ctx.Done():
			j.commit()
			return nil
		case <-j.kick:
			j.commit()
		}
	}
}

// commit makes durable what waits.
func (j *Journal) commit() {
	j.mu.Lock()
	g := j.group
	if g.count == 0 {
		j.mu.Unlock()
		return
	}
	began := time.Now()
	j.group = newGroup(j.spare)
	j.spare, j.busy = nil, began
	j.mu.Unlock()
	close(g.taken)

	end, err := j.write(g)
	took := time.Since(began)
	if err == nil {
		// Whoever is told of lines may ask for the journal's End, and is to
		// find them before it.
		j.publish(end)
		for _, then := range g.then {
			then()
		}
	}
	behind := j.judge(g, err)
	if j.config.Committed != nil {
		j.config.Committed(g.count, len(g.buf), took, err)
	}
	close(g.done)
	if behind != nil {
		close(behind.taken)
		close(behind.done)
	}
	j.mu.Lock()
	if cap(g.buf) <= 2*j.config.Pending {
		j.spare = g.buf
	}
	g.buf, g.then = nil, nil // a Commit may be kept for long
	j.mu.Unlock()
}

// judge says how the write of a group went. If it failed, so does what waits
// for the next write, where there are lines that may not be there without it.
func (j *Journal) judge(g *group, err error) (behind *group) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil && j.writing != nil {
		j.failed++
		close(j.grown)
		j.grown = make(chan struct{})
	}
	j.ended = time.Now()
	j.lasted = j.ended.Sub(j.busy)
	j.writing, j.busy = nil, time.Time{}
	g.err, g.settled = err, true
	if err == nil || !j.group.follows {
		return nil
	}
	behind = j.group
	behind.settled = true
	behind.err = fmt.Errorf("behind lines that are not stored: %w", err)
	j.group = newGroup(nil)
	return behind
}

// write makes a group durable and returns the number behind it.
func (j *Journal) write(g *group) (end uint64, err error) {
	if j.active == nil || j.activeEnd >= j.config.Segment {
		if err := j.roll(); err != nil {
			return 0, err
		}
	}
	first := j.nextNumber
	// Used up even if this fails: a torn block must not share numbers with a good one.
	j.nextNumber += uint64(g.count)
	j.activeSeg.seal(g.buf, first, g.count)
	j.announce(g, first)
	_, err = j.active.WriteAt(g.buf, j.activeEnd)
	if err == nil {
		err = j.active.Datasync()
	}
	if err != nil {
		// After a failed fdatasync the kernel may call pages clean that are
		// not on the disk: this segment is written no more.
		_ = j.active.Truncate(j.activeEnd)
		j.abandon()
		return 0, fmt.Errorf("journal: write to %s: %w", j.config.Dir, err)
	}
	j.activeEnd += int64(len(g.buf))
	g.end = j.nextNumber
	return g.end, nil
}

// announce lets those see the block who do not wait until it is durable.
func (j *Journal) announce(g *group, first uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.writing = &writing{group: g, first: first, path: j.segments[len(j.segments)-1].path, at: j.activeEnd}
	close(j.begun)
	j.begun = make(chan struct{})
}

// publish lets the readers see what is durable.
func (j *Journal) publish(end uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.segments[len(j.segments)-1].end = j.activeEnd
	j.end = end
	close(j.grown)
	j.grown = make(chan struct{})
}

func (j *Journal) abandon() {
	if j.active != nil {
		_ = j.active.Close() // what was acknowledged is synced
		j.active = nil
	}
}

// roll begins a new segment, whose header and name are durable before a block is.
func (j *Journal) roll() error {
	j.abandon()
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	seg := segment{
		first: j.nextNumber, salt: binary.LittleEndian.Uint64(salt[:]),
		unused: uint32(min(j.nextNumber-j.End(), math.MaxUint32)),
	}
	path := filepath.Join(j.config.Dir, fmt.Sprintf("%020d%s", seg.first, suffix))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) { // one that failed before its first block
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	var f File = osFile{file}
	if j.config.Wrap != nil {
		f = j.config.Wrap(f)
	}
	_, err = f.WriteAt(seg.header(), 0)
	if err == nil {
		err = f.Datasync()
	}
	if err == nil {
		err = durable.SyncDir(j.config.Dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("journal: begin %s: %w", path, err), f.Close(), os.Remove(path))
	}
	j.active, j.activeSeg, j.activeEnd = f, seg, segmentHeader
	j.mu.Lock()
	j.segments = slices.DeleteFunc(j.segments, func(h held) bool { return h.path == path })
	j.segments = append(j.segments, held{segment: seg, path: path, end: segmentHeader})
	j.mu.Unlock()
	return nil
}

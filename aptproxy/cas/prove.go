package cas

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/internal/durable"
)

// prove hashes the file unless it is the one that was proven already.
func (s *Store) prove(sum Sum, b *blob, file *os.File, info fs.FileInfo) error {
	now := proofOf(info)
	if p := b.proof.Load(); p != nil && *p == now {
		return nil
	}
	b.proving.Lock()
	defer b.proving.Unlock()
	if p := b.proof.Load(); p != nil && *p == now {
		return nil
	}
	if err := s.hash(context.Background(), sum, b, file, 0); err != nil {
		return err
	}
	b.proof.Store(&now)
	return nil
}

// hash reads the whole file, at most rate bytes a second if that is not 0.
// What is wrong goes to quarantine, and the error wraps ErrNotFound.
func (s *Store) hash(ctx context.Context, sum Sum, b *blob, file *os.File, rate int64) error {
	h := sha256.New()
	_, err := io.Copy(h, &pacedReader{ctx: ctx, r: io.NewSectionReader(file, 0, 1<<62), rate: rate, started: time.Now()})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && Sum(h.Sum(nil)) == sum {
		return nil
	}
	// An unreadable disk is no different from a wrong byte to who asks.
	if err == nil {
		err = ErrMismatch
	}
	s.quarantine(sum, b, err)
	return fmt.Errorf("store: %s: %w (moved into quarantine: %w)", sum, ErrNotFound, err)
}

// quarantine takes a blob out of the store and keeps it for who wants to know.
func (s *Store) quarantine(sum Sum, b *blob, why error) {
	s.forget(sum, b)
	s.quarantined.Add(1)
	to := filepath.Join(s.dir, "quarantine", sum.String())
	err := os.Rename(s.path(sum), to)
	if err == nil {
		err = errors.Join(durable.SyncDir(filepath.Dir(to)), durable.SyncDir(filepath.Dir(s.path(sum))))
	}
	s.log.Error("a blob in the store is not what it was: moved into quarantine, and fetched again when asked for",
		"sum", sum, "why", why, "error", err)
}

// pacedReader reads no faster than its rate.
type pacedReader struct {
	ctx     context.Context
	r       io.Reader
	rate    int64 // bytes per second; 0: no limit
	read    int64
	started time.Time
}

func (p *pacedReader) Read(buf []byte) (int, error) {
	if p.rate > 0 {
		due := p.started.Add(time.Duration(float64(p.read) / float64(p.rate) * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			select {
			case <-p.ctx.Done():
			case <-time.After(wait):
			}
		}
	}
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := p.r.Read(buf)
	p.read += int64(n)
	return n, err
}

// Report is what Verify found.
type Report struct {
	Checked int           `json:"checked"`
	Bytes   int64         `json:"bytes"`
	Bad     []string      `json:"bad"` // sums of the blobs that are in quarantine now
	Took    time.Duration `json:"took_ns"`
}

// Verify hashes every blob anew, whatever was proven before, at most rate bytes
// a second (0: as fast as the disk), and quarantines what is wrong. It blocks
// until all are read or ctx ends, and then gives ctx's error with what it found
// so far.
func (s *Store) Verify(ctx context.Context, rate int64) (Report, error) {
	started := time.Now()
	report := Report{Bad: []string{}}
	s.mu.Lock()
	sums := make([]Sum, 0, len(s.blobs))
	for sum := range s.blobs {
		sums = append(sums, sum)
	}
	s.mu.Unlock()
	slices.SortFunc(sums, func(a, b Sum) int { return slices.Compare(a[:], b[:]) })
	for _, sum := range sums {
		if ctx.Err() != nil {
			return report, ctx.Err()
		}
		s.mu.Lock()
		b := s.blobs[sum]
		s.mu.Unlock()
		if b == nil {
			continue
		}
		if err := s.verifyOne(ctx, sum, b, rate); errors.Is(err, ErrNotFound) {
			report.Bad = append(report.Bad, sum.String())
		}
		report.Checked++
		report.Bytes += b.size
	}
	report.Took = time.Since(started)
	return report, ctx.Err()
}

func (s *Store) verifyOne(ctx context.Context, sum Sum, b *blob, rate int64) error {
	b.proving.Lock()
	defer b.proving.Unlock()
	file, err := os.Open(s.path(sum))
	if err != nil {
		s.forget(sum, b)
		return fmt.Errorf("store: %s: %w", sum, ErrNotFound)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := s.hash(ctx, sum, b, file, rate); err != nil {
		return err
	}
	p := proofOf(info)
	b.proof.Store(&p)
	return nil
}

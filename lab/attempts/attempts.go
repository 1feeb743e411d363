// Package attempts tries something again and again while a fault is under way,
// and tells when it works again.
package attempts

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Series is attempts that are started one after the other at a steady rate,
// whether the ones before have ended or not.
type Series struct {
	stop context.CancelFunc
	all  sync.WaitGroup

	mu   sync.Mutex
	list []attempt
}

type attempt struct {
	started, ended time.Time
	err            error
}

// Start begins a series; try is told the number of the attempt and must end
// by itself. It goes on until Stop, or the end of ctx.
func Start(ctx context.Context, every time.Duration, try func(i int) error) *Series {
	ctx, cancel := context.WithCancel(ctx)
	s := &Series{stop: cancel}
	s.all.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			s.all.Go(func() { s.once(i, try) })
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	return s
}

func (s *Series) once(i int, try func(int) error) {
	one := attempt{started: time.Now()}
	one.err = try(i)
	one.ended = time.Now()
	s.mu.Lock()
	s.list = append(s.list, one)
	s.mu.Unlock()
}

// Stop ends it and waits for attempts under way.
func (s *Series) Stop() {
	s.stop()
	s.all.Wait()
}

// Count tells how many have ended, and how many of them failed.
func (s *Series) Count() (made, failed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.list {
		if one.err != nil {
			failed++
		}
	}
	return len(s.list), failed
}

// ErrStillFailing: the last attempt that failed is not long enough ago.
var ErrStillFailing = errors.New("attempts fail still")

// Works tells since when every attempt has worked: the end of the first that
// was started after the last one that failed. Until that is for ago, it is
// ErrStillFailing.
func (s *Series) Works(ago time.Duration) (since time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var last time.Time
	failed := 0
	for _, one := range s.list {
		if one.err != nil {
			failed++
			if one.started.After(last) {
				last = one.started
			}
		}
	}
	for _, one := range s.list {
		if one.err == nil && one.started.After(last) && (since.IsZero() || one.ended.Before(since)) {
			since = one.ended
		}
	}
	if since.IsZero() || time.Since(since) < ago {
		return time.Time{}, fmt.Errorf("%w: %d of %d", ErrStillFailing, failed, len(s.list))
	}
	return since, nil
}

package raftstore

import (
	"sync"
	"time"
)

// limiter lets the first of equal events through in every interval, so that a
// fault that repeats ten times a second is one line a minute in the log.
type limiter struct {
	every time.Duration
	now   func() time.Time
	mu    sync.Mutex
	last  map[string]time.Time
}

// maxLimited bounds the memory: sources can be forged.
const maxLimited = 1024

func newLimiter(every time.Duration) *limiter {
	return &limiter{every: every, now: time.Now, last: map[string]time.Time{}}
}

// allow tells whether the event may be logged now.
func (l *limiter) allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if last, ok := l.last[key]; ok && now.Sub(last) < l.every {
		return false
	}
	if len(l.last) >= maxLimited {
		for k, t := range l.last {
			if now.Sub(t) >= l.every {
				delete(l.last, k)
			}
		}
		if len(l.last) >= maxLimited {
			return false
		}
	}
	l.last[key] = now
	return true
}

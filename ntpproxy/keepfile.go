package ntpproxy

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// saver replaces small files for those who must not wait for a disk: a write
// that hangs (fsync of a disk that died) holds up the next writes and nobody
// else. One is under way at a time, and of each file only the latest content
// waits. Its methods may be called from any goroutine.
type saver struct {
	through func(write func() error) error // what a test puts in the way of each write; nil: nothing
	log     *slog.Logger

	mu      sync.Mutex
	waiting map[string]func() error // what writes the latest content, by path
	now     string                  // path that is being written; "" none
	idle    chan struct{}           // closed when nothing is left; nil: nothing is under way
}

// save has a file written by write. It does not block; that the file could not
// be written goes to the log.
func (s *saver) save(path string, write func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == nil {
		s.waiting = map[string]func() error{}
	}
	s.waiting[path] = write
	if s.idle == nil {
		s.idle = make(chan struct{})
		go s.work() // ends when nothing waits any more; wait waits for it
	}
}

// work writes until nothing waits.
func (s *saver) work() {
	for {
		path, write, more := s.next()
		if !more {
			return
		}
		through := s.through
		if through == nil {
			through = func(write func() error) error { return write() }
		}
		if err := through(write); err != nil {
			s.log.Warn("a file that a restart would read is not written: free space, or repair the disk", "path", path, "error", err)
		}
	}
}

// next takes what is to be written next.
func (s *saver) next() (path string, write func() error, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, write = range s.waiting {
		delete(s.waiting, path)
		s.now = path
		return path, write, true
	}
	s.now = ""
	close(s.idle)
	s.idle = nil
	return "", nil, false
}

// saveGrace is how long the end waits for the disk. A write that hangs in the
// kernel can't be ended, and the process can, by its signal.
const saveGrace = 2 * time.Second

// wait waits until everything is on the disk, for grace at most. The error
// names the files that are not.
func (s *saver) wait(grace time.Duration) error {
	s.mu.Lock()
	idle := s.idle
	s.mu.Unlock()
	if idle == nil {
		return nil
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle == nil {
		return nil
	}
	left := slices.Sorted(maps.Keys(s.waiting))
	if !slices.Contains(left, s.now) {
		left = append([]string{s.now}, left...)
	}
	return fmt.Errorf("ntpproxy: the disk did not take %s within %v: a restart reads what they held before", strings.Join(left, ", "), grace)
}

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"holdfast/internal/durable"
	"holdfast/internal/health"
)

// Conditions that a Source raises.
const (
	ConditionLastGood = "config.last-good" // the node runs the last good copy
	ConditionUnsaved  = "config.unsaved"   // the last good copy cannot be kept
)

// maxQuoted bounds the mistakes that a condition quotes.
const maxQuoted = 10

// Source holds the cluster file that a node runs. Its methods may be called
// from any goroutine.
type Source struct {
	path     string // "" when there is no file
	lastGood string // "" none is kept
	sections map[string]SectionValidator
	board    *health.Board

	reload  sync.Mutex // one Reload at a time
	current atomic.Pointer[File]
	mu      sync.Mutex
	changed chan struct{} // closed at the next change
}

// OpenSource loads the cluster file at path and keeps a copy at lastGood (""
// keeps none). When the file cannot be read or has mistakes, the node starts
// from that copy and the condition "config.last-good" says why and what to do;
// the copy's File has lastGood as its Path. Without a good copy the mistakes
// are the error.
func OpenSource(path, lastGood string, sections map[string]SectionValidator, board *health.Board) (*Source, error) {
	s := &Source{path: path, lastGood: lastGood, sections: sections, board: board, changed: make(chan struct{})}
	f, data, err := s.read(path)
	if err == nil {
		s.current.Store(f)
		s.keep(data)
		return s, nil
	}
	if lastGood == "" {
		return nil, err
	}
	old, _, oldErr := s.read(lastGood)
	if errors.Is(oldErr, os.ErrNotExist) {
		return nil, err
	}
	if oldErr != nil {
		return nil, errors.Join(err, fmt.Errorf("and the last good copy does not help: %w", oldErr))
	}
	s.current.Store(old)
	board.Raise(ConditionLastGood, health.Warning, lastGoodMessage(path, lastGood, err))
	return s, nil
}

// NewSource holds a File that was made without a file, such as Single's; it
// cannot be reloaded.
func NewSource(f *File) *Source {
	s := &Source{changed: make(chan struct{})}
	s.current.Store(f)
	return s
}

// Current is the cluster file that the node runs; never nil.
func (s *Source) Current() *File { return s.current.Load() }

// Changed is closed when Current next gives another file. Take it before
// Current, so that no change is missed.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Reload reads the file again. With mistakes in it, nothing changes and they
// are the error. Otherwise Current gives the new file, and the Change says in
// what it differs; it may be empty. The file's sum counts: when only comments
// differ, Changed is closed all the same.
func (s *Source) Reload() (Change, error) {
	s.reload.Lock()
	defer s.reload.Unlock()
	if s.path == "" {
		return Change{}, errors.New("reload the cluster file: this node runs without one")
	}
	f, data, err := s.read(s.path)
	if err != nil {
		return Change{}, err
	}
	s.keep(data)
	s.board.Clear(ConditionLastGood)
	before := s.current.Swap(f)
	if before.Sum != f.Sum {
		s.mu.Lock()
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
	return Diff(before, f), nil
}

func (s *Source) read(path string) (*File, []byte, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster file: %w", err)
	}
	f, err := Parse(path, data, s.sections)
	return f, data, err
}

// keep saves the last good copy. Failing to is no reason not to run.
func (s *Source) keep(data []byte) {
	if s.lastGood == "" {
		return
	}
	if err := save(s.lastGood, data); err != nil {
		s.board.Raise(ConditionUnsaved, health.Warning, fmt.Sprintf(
			"the last good copy of the cluster file cannot be kept: %v; until that is mended, a restart depends on %s being right", err, s.path))
		return
	}
	s.board.Clear(ConditionUnsaved)
}

// save keeps a file as it is when it has the bytes already: a node that only
// restarts writes nothing.
func save(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	return durable.Replace(path, data, 0o640)
}

func lastGoodMessage(path, lastGood string, err error) string {
	lines := strings.Split(err.Error(), "\n")
	if extra := len(lines) - maxQuoted; extra > 0 {
		lines = append(lines[:maxQuoted], fmt.Sprintf("and %d more: holdfast config check %s lists them", extra, path))
	}
	return fmt.Sprintf("%s cannot be used, so this node runs the last good copy, %s; mend the file and run holdfast config reload:\n%s",
		path, lastGood, strings.Join(lines, "\n"))
}

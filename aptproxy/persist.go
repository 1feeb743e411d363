package aptproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
	"holdfast/internal/durable"
)

// suiteRecord is what is kept of a suite beside its blobs, in a file of its own.
type suiteRecord struct {
	Directory   string               `json:"directory"`
	Generations []generationRecord   `json:"generations"` // oldest first
	Used        map[string]time.Time `json:"used"`
}

type generationRecord struct {
	Blobs     releaseBlobs `json:"blobs"`
	Published time.Time    `json:"published"`
}

func (s *Server) suiteFile(r *repository, dir string) string {
	return filepath.Join(s.config.Dir, "suites", r.name, url.PathEscape(dir)+".json")
}

// save makes what is known of a suite durable. When it can't, it is known until
// the end of the process, and asked for again after it.
func (s *Server) save(r *repository, su *suite) {
	su.mu.Lock()
	record := suiteRecord{Directory: su.dir, Used: map[string]time.Time{}}
	for name, at := range su.used {
		record.Used[name] = at
	}
	for _, g := range su.generations {
		record.Generations = append(record.Generations, generationRecord{g.releaseBlobs(), g.published})
	}
	su.mu.Unlock()
	data, err := json.Marshal(record)
	path := s.suiteFile(r, su.dir)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = durable.Replace(path, data, 0o644)
	}
	if err != nil {
		s.log.Warn("what is known of a suite can't be kept", "repository", r.name, "suite", su.dir, "error", err)
	}
}

// load reads what was kept of all suites.
func (s *Server) load() {
	for _, r := range s.active.Load().repositories {
		dir := filepath.Join(s.config.Dir, "suites", r.name)
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("what was kept of a repository can't be read", "dir", dir, "error", err)
		}
		for _, f := range files {
			if !strings.HasSuffix(f.Name(), ".json") {
				continue
			}
			su, err := s.loadSuite(r, filepath.Join(dir, f.Name()))
			if err != nil {
				s.log.Warn("a suite is asked for anew: what was kept of it can't be used", "file", f.Name(), "error", err)
				continue
			}
			r.mu.Lock()
			r.suites[su.dir] = su
			r.mu.Unlock()
		}
	}
}

func (s *Server) loadSuite(r *repository, path string) (*suite, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var record suiteRecord
	if err := json.Unmarshal(data, &record); err != nil {
		return nil, err
	}
	if clean, err := cleanPath(record.Directory); err != nil || "/"+record.Directory != clean && record.Directory != "." {
		return nil, fmt.Errorf("%q is no directory of a suite", clip(record.Directory))
	}
	su := &suite{dir: record.Directory, used: record.Used}
	if su.used == nil {
		su.used = map[string]time.Time{}
	}
	for _, kept := range record.Generations {
		g, err := s.loadGeneration(r, su.dir, kept)
		if err != nil {
			s.log.Warn("a generation was lost", "suite", su.dir, "error", err)
			continue
		}
		su.generations = append(su.generations, g)
	}
	if len(su.generations) == 0 {
		return nil, errors.New("no generation is left")
	}
	return su, nil
}

// loadGeneration verifies a kept generation as if it came from a mirror, at the
// time when it did.
func (s *Server) loadGeneration(r *repository, dir string, kept generationRecord) (*generation, error) {
	read := func(hex string) ([]byte, error) {
		sum, err := deb.ParseSum(hex)
		if err != nil {
			return nil, err
		}
		return s.readBlob(cas.Sum(sum))
	}
	var text []byte
	if kept.Blobs.Inline != "" {
		data, err := read(kept.Blobs.Inline)
		if err != nil {
			return nil, err
		}
		if text, err = r.keyring.Inline(data, kept.Published); err != nil {
			return nil, err
		}
	} else {
		var err error
		if text, err = read(kept.Blobs.Plain); err != nil {
			return nil, err
		}
		signature, err := read(kept.Blobs.Signature)
		if err != nil && r.keyring != nil {
			return nil, err
		}
		if err := r.keyring.Detached(text, signature, kept.Published); err != nil {
			return nil, err
		}
	}
	return newGeneration(dir, kept.Blobs, text, kept.Published)
}

// memory holds small files that could not be stored, while the disk is full.
type memory struct {
	mu   sync.Mutex
	data map[cas.Sum][]byte
}

// maxInMemory bounds them, in number.
const maxInMemory = 64

func (s *Server) keepInMemory(sum cas.Sum, data []byte) {
	if _, have := s.store.Has(sum); have {
		return
	}
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	if s.memory.data == nil || len(s.memory.data) >= maxInMemory {
		s.memory.data = map[cas.Sum][]byte{}
	}
	s.memory.data[sum] = data
}

func (s *Server) inMemory(sum cas.Sum) ([]byte, bool) {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	data, ok := s.memory.data[sum]
	return data, ok
}

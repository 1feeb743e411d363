package logrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/logrelay/journal"
)

// Paths of the admin socket.
const (
	StatusPath = "/v1/logs/status"
	TailPath   = "/v1/logs/tail"
	PausePath  = "/v1/logs/pause"
	ResumePath = "/v1/logs/resume"
)

// Status is how the relay stands.
type Status struct {
	Journal string         `json:"journal"`        // its directory
	Bytes   int64          `json:"bytes"`          // of the journal
	End     uint64         `json:"end"`            // number of the next line
	Held    string         `json:"held,omitempty"` // why senders wait, if they do
	Outputs []OutputStatus `json:"outputs"`
}

// OutputStatus is how far an output has come.
type OutputStatus struct {
	Name string `json:"name"`
	Next uint64 `json:"next"` // the first line that it does not durably have
}

// Read reads a status as the admin socket writes it.
func (s *Status) Read(r io.Reader) error { return json.NewDecoder(r).Decode(s) }

// Status tells how the relay stands. While it does not run, it has no outputs.
func (s *Server) Status() Status {
	status := Status{Journal: s.dir(), Held: s.gate.held()}
	if j := s.current.Load(); j != nil {
		status.Bytes, status.End = j.Bytes(), j.End()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, cursor := range s.outputs {
		status.Outputs = append(status.Outputs, OutputStatus{Name: name, Next: cursor.Next()})
	}
	slices.SortFunc(status.Outputs, func(a, b OutputStatus) int { return strings.Compare(a.Name, b.Name) })
	return status
}

// Handler answers `holdfast logs`.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatusPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Status()) // the admin may be gone
	})
	mux.HandleFunc("POST "+PausePath, func(http.ResponseWriter, *http.Request) {
		s.gate.pause(true)
		s.log.Warn("paused by an admin: RELP and TCP are not read")
	})
	mux.HandleFunc("POST "+ResumePath, func(http.ResponseWriter, *http.Request) {
		s.gate.pause(false)
		s.log.Info("resumed by an admin")
	})
	mux.HandleFunc("GET "+TailPath, func(w http.ResponseWriter, r *http.Request) {
		t, err := s.parseTail(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = t.run(r.Context(), w) // ends with the admin's connection
	})
	return mux
}

// tail is a look at the lines that come in.
type tail struct {
	journal *journal.Journal
	names   *names
	rules   rules // one, to judge by; none: every line
	from    uint64
	since   int64
	lines   int // 0: no end
}

func (s *Server) parseTail(r *http.Request) (*tail, error) {
	t := &tail{journal: s.current.Load(), names: s.names()}
	if t.journal == nil {
		return nil, fmt.Errorf("the log relay is not running yet")
	}
	t.rules.secrets = s.newRules().secrets
	query := r.URL.Query()
	if text := query.Get("if"); text != "" {
		program, err := compile(text)
		if err != nil {
			return nil, fmt.Errorf("--if: %w", err)
		}
		t.rules.list = []rule{{program: program}}
	}
	t.from = t.journal.End()
	if text := query.Get("since"); text != "" && text != "0s" {
		since, err := time.ParseDuration(text)
		if err != nil || since < 0 {
			return nil, fmt.Errorf("--since %q: want a duration such as 10m", text)
		}
		t.from, t.since = 0, time.Now().Add(-since).UnixNano()
	}
	if text := query.Get("lines"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("--lines %q: want a number from 0 on", text)
		}
		t.lines = n
	}
	return t, nil
}

// run writes lines until the reader is gone or has enough. A slow reader holds
// nobody up: the journal waits for it, or goes on without it.
func (t *tail) run(ctx context.Context, w http.ResponseWriter) error {
	control := http.NewResponseController(w)
	if err := control.Flush(); err != nil {
		return err
	}
	reader := t.journal.Reader(t.from)
	defer reader.Close()
	var l line
	var out []byte
	for written := 0; ; {
		block, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		out = out[:0]
		enough := false
		if err := block.Each(func(number uint64, r journal.Record) bool {
			if number < t.from || r.Time < t.since || r.Input == viaMark {
				return true
			}
			l.read(r, t.names)
			if t.fits(&l) {
				before := len(out)
				out = t.rules.redact(l.appendFile(out), before)
				written++
			}
			enough = t.lines > 0 && written >= t.lines
			return !enough
		}); err != nil {
			return err
		}
		if _, err := w.Write(out); err != nil || enough {
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
	}
}

func (t *tail) fits(l *line) bool {
	if len(t.rules.list) == 0 {
		return true
	}
	t.rules.facts = factsOf(l)
	return t.rules.holds(t.rules.list[0].program)
}

package logrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"holdfast/logrelay/journal"
)

// Root is where the relay's tree begins, on the admin socket and in the API;
// the paths below it follow.
const (
	Root        = "/v1/holdfast/logs/"
	StatusPath  = Root + "status"
	QueryPath   = Root + "query"
	SummaryPath = Root + "summary"
	PausePath   = Root + "pause"
	ResumePath  = Root + "resume"
	FlushPath   = Root + "flush"
	ReplayPath  = Root + "replay"
)

// Status is how the relay stands.
type Status struct {
	Node    string         `json:"node"`
	Journal string         `json:"journal"`        // its directory
	Bytes   int64          `json:"bytes"`          // of the journal
	End     uint64         `json:"end"`            // number of the next line
	Held    string         `json:"held,omitempty"` // why senders wait, if they do
	Outputs []OutputStatus `json:"outputs"`
	Silent  []string       `json:"silent,omitempty"` // hosts that logged every minute and stopped
	Gaps    []Gap          `json:"gaps,omitempty"`   // the newest
	Doubled uint64         `json:"doubled"`          // lines that are here twice, of those that came since the start
	Peers   []Peer         `json:"peers"`            // all nodes that run logs, this one too
}

// Peer is a node that runs logs.
type Peer struct {
	Name string `json:"name"`
	URL  string `json:"url"` // of its API over HTTPS; "": it has none
}

// OutputStatus is how far an output has come.
type OutputStatus struct {
	Name    string     `json:"name"`
	Next    uint64     `json:"next"`             // the first line that it does not durably have
	Waiting uint64     `json:"waiting"`          // lines from there on
	Oldest  *time.Time `json:"oldest,omitempty"` // when the first of them was received
	Error   string     `json:"error,omitempty"`  // why it takes none
	Since   *time.Time `json:"since,omitempty"`  // it takes none
}

// Read reads a status as the tree writes it.
func (s *Status) Read(r io.Reader) error { return json.NewDecoder(r).Decode(s) }

// Status tells how the relay stands. While it does not run, it has no outputs.
func (s *Server) Status() Status {
	status := Status{Node: s.config.Node, Journal: s.dir(), Held: s.gate.held(), Silent: s.silence.silent(), Gaps: s.gaps.newest(), Doubled: s.doubled.Load()}
	if s.deps.Peers != nil {
		status.Peers = s.deps.Peers()
	}
	j := s.current.Load()
	if j == nil {
		return status
	}
	status.Bytes, status.End = j.Bytes(), j.End()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, o := range s.outputs {
		status.Outputs = append(status.Outputs, o.status(name, j, status.End))
	}
	slices.SortFunc(status.Outputs, func(a, b OutputStatus) int { return strings.Compare(a.Name, b.Name) })
	return status
}

func (o *outputState) status(name string, j *journal.Journal, end uint64) OutputStatus {
	next := o.cursor.Next()
	status := OutputStatus{Name: name, Next: next, Waiting: j.Lines(next, end)}
	if status.Waiting > 0 {
		if at, ok := timeOf(j, next); ok {
			status.Oldest = &at
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		since := o.since
		status.Error, status.Since = o.err.Error(), &since
	}
	return status
}

// timeOf is when a line was received, or the first that is left behind it.
func timeOf(j *journal.Journal, number uint64) (at time.Time, found bool) {
	reader := j.Glance(number)
	defer reader.Close()
	block, ok, err := reader.TryNext()
	if err != nil || !ok {
		return at, false
	}
	_ = block.Each(func(n uint64, r journal.Record) bool { // what can't be read has no time
		at, found = time.Unix(0, r.Time), n >= number
		return !found
	})
	return at, found
}

// Handler answers `holdfast logs`: on the admin socket, and below the API.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatusPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Status()) // the admin may be gone
	})
	mux.HandleFunc("GET "+QueryPath, s.serveQuery)
	mux.HandleFunc("GET "+SummaryPath, s.serveSummary)
	mux.HandleFunc("POST "+PausePath, func(http.ResponseWriter, *http.Request) {
		s.gate.pause(true)
		s.log.Warn("paused by an admin: RELP and TCP are not read")
	})
	mux.HandleFunc("POST "+ResumePath, func(http.ResponseWriter, *http.Request) {
		s.gate.pause(false)
		s.log.Info("resumed by an admin")
	})
	mux.HandleFunc("POST "+LeavePath, s.serveLeave)
	mux.HandleFunc("POST "+FlushPath, func(w http.ResponseWriter, r *http.Request) {
		if err := s.Flush(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("POST "+ReplayPath, func(w http.ResponseWriter, r *http.Request) {
		since, err := time.Parse(time.RFC3339, r.URL.Query().Get("from"))
		var lines uint64
		if err != nil {
			err = fmt.Errorf("from: %w", err)
		} else {
			lines, err = s.replay(r.URL.Query().Get("output"), r.URL.Query().Get("of"), since)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]uint64{"lines": lines}) // the admin may be gone
	})
	return mux
}

// flushWithin bounds the wait of a Flush.
const flushWithin = 10 * time.Second

// Flush has every output take now what is in the journal, and those that wait
// for a target try it at once. It blocks until all have it, or says which have
// not after ten seconds.
func (s *Server) Flush(ctx context.Context) error {
	j := s.current.Load()
	if j == nil {
		return errors.New("the log relay is not running yet")
	}
	ctx, cancel := context.WithTimeout(ctx, flushWithin)
	defer cancel()
	end := j.End()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for first := true; ; first = false {
		s.flushing.ask()
		var behind []string
		s.mu.Lock()
		for name, o := range s.outputs {
			if first {
				o.tryNow()
			}
			if next := o.cursor.Next(); next < end {
				behind = append(behind, fmt.Sprintf("%s lacks %d lines", name, j.Lines(next, end)))
			}
		}
		s.mu.Unlock()
		if len(behind) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			slices.Sort(behind)
			return errors.New(strings.Join(behind, ", "))
		}
	}
}

// Replay sends a target what the journal has from a time on, once more, and
// returns how many lines that is at most.
func (s *Server) Replay(output string, since time.Time) (lines uint64, err error) {
	j := s.current.Load()
	if j == nil {
		return 0, errors.New("the log relay is not running yet")
	}
	s.mu.Lock()
	outputs := maps.Clone(s.outputs)
	s.mu.Unlock()
	o := outputs[output]
	var targets []string
	for name := range outputs {
		if name != "files" && name != "replica" {
			targets = append(targets, name)
		}
	}
	slices.Sort(targets)
	if !slices.Contains(targets, output) {
		return 0, fmt.Errorf("%q is no target of logs.forward: there is %q; files have every line once already", output, targets)
	}
	reader := j.Glance(0)
	defer reader.Close()
	for {
		block, ok, err := reader.TryNext()
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("the journal has no line of %s or later: logs.replay_mib says how much it keeps", since.Format(time.RFC3339))
		}
		from, found := block.First, false
		if err := block.Each(func(n uint64, r journal.Record) bool {
			from, found = n, r.Time >= since.UnixNano()
			return !found
		}); err != nil {
			return 0, err
		}
		if found {
			if err := s.mayReplay(j, o, outputs, from); err != nil {
				return 0, fmt.Errorf("%s: %w", output, err)
			}
			o.replay(from)
			s.log.Info("an admin has a target get lines once more", "output", output, "from", from, "end", j.End())
			return j.Lines(from, j.End()), nil
		}
	}
}

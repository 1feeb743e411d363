package check

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/state"
)

// scriptPath is where the unit that runs scripts is asked for one: a POST with
// the check's ID and the sum of its script (scriptSum), and no body.
const scriptPath = "/v1/scripts/run"

// scriptAnswer is what the unit says of one run.
type scriptAnswer struct {
	Status state.Status `json:"status"`
	Output string       `json:"output"`
}

// scriptSum tells whether two cluster files mean the same by a script check. d
// has its defaults.
func scriptSum(d Definition) string {
	text, err := json.Marshal([]any{d.Script, d.User, d.Timeout})
	if err != nil {
		panic(fmt.Sprintf("check: encode texts and a number: %v", err)) // it can't fail
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// ScriptsDeps is what Scripts needs.
type ScriptsDeps struct {
	Commands Commander
	// Reload reads the cluster file again, and calls Set with what it says. It is
	// called when a check is asked for that the file did not have, or not so.
	Reload  func() error
	Metrics prometheus.Registerer // nil: not registered
}

// Scripts runs the script checks of this node for a process that has no right
// to. Who asks names a check of the cluster file, and is told what one run of it
// came to. What runs, as whom and how long is what the file says that this
// process has read itself: nothing of that can be asked for.
type Scripts struct {
	deps    ScriptsDeps
	runs    *prometheus.CounterVec
	refused prometheus.Counter

	mu   sync.Mutex
	file map[string]*script // by the check's ID
}

// script is a script check of the file.
type script struct {
	sum   string
	probe Probe
	turn  chan struct{} // has an element while it runs: a check runs once at a time
}

// NewScripts runs nothing before Set says what there is.
func NewScripts(deps ScriptsDeps) *Scripts {
	s := &Scripts{
		deps: deps,
		file: map[string]*script{},
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_scripts_runs_total", Help: "Script checks that the unit ran, by what they came to.",
		}, []string{"status"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_scripts_refused_total", Help: "Requests for a script that the cluster file of the unit does not have, or not so.",
		}),
	}
	for _, status := range []state.Status{state.Passing, state.Warning, state.Critical} {
		s.runs.WithLabelValues(string(status))
	}
	if deps.Metrics != nil {
		deps.Metrics.MustRegister(s.runs, s.refused)
	}
	return s
}

// Set declares the checks of the cluster file; those that are no scripts count
// for nothing. They are valid and have IDs of their own. A script that runs goes
// on to its end.
func (s *Scripts) Set(definitions []Definition) error {
	file := map[string]*script{}
	for _, d := range definitions {
		if len(d.Script) == 0 {
			continue
		}
		d = d.WithDefaults()
		probe, err := NewProbe(d, s.deps.Commands)
		if err != nil {
			return fmt.Errorf("check %q: %w", d.ID, err)
		}
		file[d.ID] = &script{sum: scriptSum(d), probe: probe, turn: make(chan struct{}, 1)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, old := range s.file {
		if now := file[id]; now != nil && now.sum == old.sum {
			file[id] = old
		}
	}
	s.file = file
	return nil
}

// Handler answers who may ask. It runs a script in the request, and ends it with
// the request.
func (s *Scripts) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+scriptPath, s.serve)
	return mux
}

func (s *Scripts) serve(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	found, err := s.find(query.Get("check"), query.Get("sum"))
	if err != nil {
		s.refused.Inc()
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	const ended = "the unit ends, or who asked is gone"
	select {
	case found.turn <- struct{}{}:
	case <-r.Context().Done():
		http.Error(w, ended, http.StatusServiceUnavailable)
		return
	}
	defer func() { <-found.turn }()
	result := found.probe.Probe(r.Context())
	if r.Context().Err() != nil { // it was broken off, and says nothing about the service
		http.Error(w, ended, http.StatusServiceUnavailable)
		return
	}
	s.runs.WithLabelValues(string(result.Status)).Inc()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(scriptAnswer{result.Status, result.Output}) // who asked is gone: nobody to tell
}

// find gives the script that is meant. Who asks may have read a newer file.
func (s *Scripts) find(id, sum string) (*script, error) {
	found, err := s.known(id, sum)
	if err == nil || s.deps.Reload == nil {
		return found, err
	}
	if failed := s.deps.Reload(); failed != nil {
		return nil, fmt.Errorf("%w, and can't be read again: %w", err, failed)
	}
	return s.known(id, sum)
}

func (s *Scripts) known(id, sum string) (*script, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch found := s.file[id]; {
	case found == nil:
		return nil, fmt.Errorf("the cluster file has no script check %.80q on this node", id)
	case found.sum != sum:
		return nil, fmt.Errorf("the cluster file has another script, user or time limit for check %.80q: let the agent reload it", id)
	default:
		return found, nil
	}
}

package aptproxy

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"holdfast/aptproxy/cas"
	"holdfast/internal/state"
)

// Handler answers the admin socket: what `holdfast apt` asks. Who may ask is
// the socket's business.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/apt/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Status()) })
	mux.HandleFunc("GET /v1/apt/who", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, s.recent.find(r.URL.Query().Get("file")))
	})
	mux.HandleFunc("POST /v1/apt/top", asked(func(_ *http.Request, q TopRequest) (any, error) { return s.recent.top(q.By) }))
	mux.HandleFunc("GET /v1/apt/origins", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Origins()) })
	mux.HandleFunc("POST /v1/apt/warm", asked(func(r *http.Request, q WarmRequest) (any, error) { return s.Warm(r.Context(), q) }))
	mux.HandleFunc("POST /v1/apt/purge", asked(func(r *http.Request, q PurgeRequest) (any, error) { return s.Purge(r.Context(), q) }))
	mux.HandleFunc("POST /v1/apt/import", asked(func(r *http.Request, q ImportRequest) (any, error) { return s.Import(r.Context(), q.Dir) }))
	mux.HandleFunc("POST /v1/apt/verify", func(w http.ResponseWriter, r *http.Request) {
		rate, _ := strconv.ParseInt(r.URL.Query().Get("rate"), 10, 64) // not a number: no limit
		report, err := s.store.Verify(r.Context(), rate)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, report)
	})
	mux.HandleFunc("GET /v1/apt/snapshots", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Snapshots()) })
	mux.HandleFunc("GET /v1/apt/views", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Views()) })
	mux.HandleFunc("POST /v1/apt/freeze", asked(func(r *http.Request, f FreezeRequest) (any, error) { return s.Freeze(r.Context(), f) }))
	mux.HandleFunc("POST /v1/apt/thaw", asked(func(r *http.Request, f FreezeRequest) (any, error) {
		return map[string]string{"thawed": f.View}, s.Thaw(r.Context(), f.View)
	}))
	mux.HandleFunc("POST /v1/apt/promote", asked(func(r *http.Request, p PromoteRequest) (any, error) {
		return map[string]string{"promoted": p.To}, s.Promote(r.Context(), p.From, p.To, p.Nodes)
	}))
	mux.HandleFunc("POST /v1/apt/rollback", asked(func(r *http.Request, f FreezeRequest) (any, error) { return s.Rollback(r.Context(), f.View) }))
	mux.HandleFunc("POST /v1/apt/diff", asked(func(r *http.Request, d DiffRequest) (any, error) { return s.Diff(d) }))
	return mux
}

// PromoteRequest says which view becomes which.
type PromoteRequest struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Nodes string `json:"nodes"` // of a new view; "" those that it has
}

// TopRequest says what is counted: node, package or repository.
type TopRequest struct {
	By string `json:"by"`
}

// ImportRequest names a directory of this machine.
type ImportRequest struct {
	Dir string `json:"dir"`
}

// maxAdminBody bounds a request, in bytes.
const maxAdminBody = 64 << 10

// asked reads a request's body, answers, and gives errors the statuses that the
// command line knows.
func asked[T any](answer func(*http.Request, T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body T
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody)).Decode(&body); err != nil {
			http.Error(w, "the body is not what is expected here: "+err.Error(), http.StatusBadRequest)
			return
		}
		v, err := answer(r, body)
		if err == nil {
			writeJSON(w, v)
			return
		}
		status := http.StatusInternalServerError
		switch {
		case errors.Is(err, state.ErrInvalid):
			status = http.StatusBadRequest
		case errors.Is(err, state.ErrNotFound):
			status = http.StatusNotFound
		case errors.Is(err, state.ErrNoLeader):
			status = http.StatusServiceUnavailable
		case errors.Is(err, cas.ErrFull):
			status = http.StatusInsufficientStorage
		}
		http.Error(w, err.Error(), status)
	}
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked is gone: nobody to tell
}

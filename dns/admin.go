package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"holdfast/internal/state"
)

// maxAdminBody bounds a request, in bytes.
const maxAdminBody = 64 << 10

// recordRequest is the body of a change of records.
type recordRequest struct {
	Record string `json:"record"`
}

// Handler answers the admin socket: what `holdfast dns` asks. Who may ask is
// the socket's business.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/dns/records", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Records()) })
	mux.HandleFunc("POST /v1/dns/records", s.changing(s.AddRecord))
	mux.HandleFunc("DELETE /v1/dns/records", s.changing(s.DeleteRecord))
	mux.HandleFunc("GET /v1/dns/zones", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Zones()) })
	mux.HandleFunc("GET /v1/dns/zone/{zone}", func(w http.ResponseWriter, r *http.Request) {
		text, ok := s.ZoneText(r.PathValue("zone"))
		if !ok {
			http.Error(w, "this server is not primary for a zone "+r.PathValue("zone"), http.StatusNotFound)
			return
		}
		writeJSON(w, text)
	})
	mux.HandleFunc("GET /v1/dns/cache", forDomain(func(below name) any { return s.CacheDump(below) }))
	mux.HandleFunc("DELETE /v1/dns/cache", forDomain(func(below name) any { return map[string]int{"removed": s.CacheFlush(below)} }))
	mux.HandleFunc("GET /v1/dns/cache/stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.CacheStats()) })
	mux.HandleFunc("GET /v1/dns/query", replying(s.Ask))
	mux.HandleFunc("GET /v1/dns/trace", replying(s.Trace))
	mux.HandleFunc("GET /v1/dns/top", s.serveTop)
	return mux
}

// replying wraps a question.
func replying(ask func(context.Context, Question) (*Reply, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		words := r.URL.Query()
		a := Question{Name: words.Get("name"), Type: words.Get("type"), TCP: words.Get("tcp") != ""}
		if from := words.Get("from"); from != "" {
			var err error
			if a.From, err = netip.ParseAddr(from); err != nil {
				http.Error(w, "from: "+err.Error(), http.StatusBadRequest)
				return
			}
		}
		reply, err := ask(r.Context(), a)
		switch {
		case err == nil:
			writeJSON(w, reply)
		case errors.Is(err, errQuestion):
			http.Error(w, err.Error(), http.StatusBadRequest)
		default:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// maxTop bounds how long a Top watches, and maxListed what it lists.
const (
	maxTop    = time.Minute
	maxListed = 1000
)

func (s *Server) serveTop(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.URL.Query().Get("for"))
	if err != nil || d <= 0 || d > maxTop {
		http.Error(w, fmt.Sprintf("for: %q is out of range: up to %v", r.URL.Query().Get("for"), maxTop), http.StatusBadRequest)
		return
	}
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil || limit < 1 || limit > maxListed {
		http.Error(w, fmt.Sprintf("limit: %q is out of range: 1 to %d", r.URL.Query().Get("limit"), maxListed), http.StatusBadRequest)
		return
	}
	writeJSON(w, s.Top(r.Context(), d, limit))
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked is gone: nobody to tell
}

// changing wraps a change of records.
func (s *Server) changing(change func(ctx context.Context, text string) ([]string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var asked recordRequest
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody)).Decode(&asked); err != nil {
			http.Error(w, "the body is not {\"record\": TEXT}: "+err.Error(), http.StatusBadRequest)
			return
		}
		written, err := change(r.Context(), asked.Record)
		switch {
		case err == nil:
			s.log.Info("records changed", "method", r.Method, "records", written)
			writeJSON(w, written)
		case errors.Is(err, state.ErrInvalid):
			http.Error(w, err.Error(), http.StatusBadRequest)
		case errors.Is(err, state.ErrNotFound):
			http.Error(w, err.Error(), http.StatusNotFound)
		case errors.Is(err, state.ErrNoLeader):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

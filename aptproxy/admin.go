package aptproxy

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// Handler answers the admin socket: what `holdfast apt` asks. Who may ask is
// the socket's business.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/apt/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Status()) })
	mux.HandleFunc("GET /v1/apt/who", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, s.recent.find(r.URL.Query().Get("file")))
	})
	mux.HandleFunc("POST /v1/apt/verify", func(w http.ResponseWriter, r *http.Request) {
		rate, _ := strconv.ParseInt(r.URL.Query().Get("rate"), 10, 64) // not a number: no limit
		report, err := s.store.Verify(r.Context(), rate)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		writeJSON(w, report)
	})
	return mux
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked is gone: nobody to tell
}

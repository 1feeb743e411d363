package lb

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"holdfast/internal/kernel/firewall"
)

// AdminPath is below what the admin tree stands on the net unit's socket.
const AdminPath = "/v1/holdfast/lb/"

// Handler is the HTTP tree of the load balancer: JSON; 404 for a node that is
// no real server, 409 for what is refused, 503 for what needs the store. Errors
// are a line of text. Who reaches it may do everything.
//
//	GET  status               Status
//	GET  sessions             []Session
//	GET  explain/ADDRESS      []string
//	GET  firewall[?for=MODE]  text: what a firewall must let through
//	POST drain/NODE[?deadline=DURATION&message=TEXT&force=1]
//	POST undrain/NODE
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, serve := range map[string]func(*http.Request) (any, error){
		"GET status":            func(*http.Request) (any, error) { return s.Status() },
		"GET sessions":          func(*http.Request) (any, error) { return s.Sessions() },
		"GET explain/{address}": s.explainRequest,
		"GET firewall":          s.firewallRequest,
		"POST drain/{node}":     s.drainRequest,
		"POST undrain/{node}":   func(r *http.Request) (any, error) { return nil, s.EndDrain(r.Context(), r.PathValue("node")) },
	} {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" "+AdminPath+path, func(w http.ResponseWriter, r *http.Request) {
			found, err := serve(r)
			answer(w, found, err)
		})
	}
	return mux
}

// errRequest is a request that makes no sense.
var errRequest = errors.New("bad request")

func answer(w http.ResponseWriter, found any, err error) {
	status := http.StatusOK
	switch {
	case errors.Is(err, ErrUnknown):
		status = http.StatusNotFound
	case errors.Is(err, ErrRefused):
		status = http.StatusConflict
	case errors.Is(err, ErrNoStore):
		status = http.StatusServiceUnavailable
	case errors.Is(err, errRequest):
		status = http.StatusBadRequest
	case err != nil:
		status = http.StatusInternalServerError
	}
	if err != nil {
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(found) // who asked is gone
}

func (s *Service) explainRequest(r *http.Request) (any, error) {
	client, err := netip.ParseAddr(r.PathValue("address"))
	if err != nil {
		return nil, fmt.Errorf("%w: %q is no address", errRequest, r.PathValue("address"))
	}
	return s.Explain(client.Unmap())
}

func (s *Service) firewallRequest(r *http.Request) (any, error) {
	settings := s.current()
	mode := settings.Firewall
	if asked := r.FormValue("for"); asked != "" {
		mode = firewall.Mode(asked)
	}
	text, err := firewall.Text(mode, settings.rules())
	if err != nil {
		err = fmt.Errorf("%w: %w", errRequest, err)
	}
	return text, err
}

func (s *Service) drainRequest(r *http.Request) (any, error) {
	order := Drain{Since: time.Now(), Message: r.FormValue("message")}
	if text := r.FormValue("deadline"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("%w: the deadline %q is no duration such as 2h", errRequest, text)
		}
		order.Deadline = order.Since.Add(d)
	}
	return order, s.StartDrain(r.Context(), r.PathValue("node"), order, r.FormValue("force") != "")
}

package aptproxy

import (
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"strings"
)

// isOwn tells whether a path is that of a page of ours.
func isOwn(path string) bool {
	return path == "/acng-report.html" || path == "/" || path == keyringPath || strings.HasPrefix(path, peerPath+"/")
}

// own answers requests for our own pages. It is false when the path is not one.
func (s *Server) own(w http.ResponseWriter, r *http.Request) bool {
	switch r.URL.Path {
	case "/acng-report.html":
		s.report(w)
	case "/":
		s.page(w, r)
	case keyringPath:
		s.serveKeyring(w)
	default:
		hash, ok := strings.CutPrefix(r.URL.Path, peerPath+"/")
		if !ok {
			return false
		}
		s.servePeer(w, r, hash)
	}
	return true
}

// trouble is why this node should not be asked for packages; "" when it may be.
func (s *Server) trouble() string {
	if st := s.room.Load().Stats(); st.Broken != "" {
		return "packages can't be stored: " + st.Broken
	}
	all, down := 0, 0
	var last string
	for _, r := range s.active.Load().repositories {
		for _, m := range r.mirrors {
			m.mu.Lock()
			all++
			if m.failures > 0 {
				down++
				last = m.base.url().String() + ": " + m.lastErr
			}
			m.mu.Unlock()
		}
	}
	if all > 0 && down == all {
		return "no mirror of any repository answers; the last: " + last
	}
	return ""
}

// report is apt-cacher-ng's report page, for the checks that sites have of it:
// 200 while packages can be had here, 503 with the reason when not.
func (s *Server) report(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	text := s.trouble()
	if text != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
	} else {
		text = "packages are served"
	}
	_, _ = fmt.Fprintf(w, "<!doctype html><title>Holdfast apt proxy</title><p>%s</p>\n", template.HTMLEscapeString(text))
}

// nameOf is a node's name, or the address when it is no node's.
func (s *Server) nameOf(client netip.Addr) string {
	if name, ok := s.active.Load().nodes[client]; ok {
		return name
	}
	return client.String()
}

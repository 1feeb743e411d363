package aptproxy

import (
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"
)

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
	if st := s.store.Stats(); st.Broken != "" {
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

// recent remembers the files that were asked for last, and by whom.
type recent struct {
	mu   sync.Mutex
	list []Request // a ring
	next int
}

// Request is a file that a node asked for.
type Request struct {
	Node       string    `json:"node"` // its name, or its address
	Repository string    `json:"repository"`
	Path       string    `json:"path"`
	At         time.Time `json:"at"`
}

// maxRecent bounds what is remembered of requests.
const maxRecent = 100_000

func (r *recent) note(node, repository, path string, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := Request{node, repository, path, at}
	if len(r.list) < maxRecent {
		r.list = append(r.list, one)
		return
	}
	r.list[r.next] = one
	r.next = (r.next + 1) % maxRecent
}

// find lists the requests whose file begins with NAME_ or NAME_VERSION, in the
// order in which they came.
func (r *recent) find(prefix string) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []Request{}
	for i := range r.list {
		one := r.list[(r.next+i)%len(r.list)]
		if strings.HasPrefix(one.Path[strings.LastIndexByte(one.Path, '/')+1:], prefix) {
			list = append(list, one)
		}
	}
	return list
}

// nameOf is a node's name, or the address when it is no node's.
func (s *Server) nameOf(client netip.Addr) string {
	if name, ok := s.active.Load().nodes[client]; ok {
		return name
	}
	return client.String()
}

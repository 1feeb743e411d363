package aptproxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"holdfast/aptproxy/cas"
)

// ServeHTTP answers clients.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The last request's deadline must not end this one.
	_ = http.NewResponseController(w).SetWriteDeadline(deadlineFor(0))
	client := clientOf(r)
	set := s.active.Load().settings
	if limiter := set.limiterFor(client); limiter != nil {
		w = &pacedWriter{w, r.Context(), limiter}
	}
	if set.accessLog {
		counted := &countedWriter{ResponseWriter: w}
		defer s.logAccess(r, client, counted, time.Now())
		w = counted
	}
	s.answer(w, r, client, set)
}

// answer answers one request.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, client netip.Addr, set settings) {
	if !set.allows(client) {
		s.refuse(w, "network", http.StatusForbidden, fmt.Sprintf("%s may not use this proxy: its network is not in apt.allow of the cluster file", client))
		return
	}
	if r.Method == http.MethodConnect {
		s.connect(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD, CONNECT")
		s.refuse(w, "method", http.StatusMethodNotAllowed, "this proxy answers GET and HEAD")
		return
	}
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		s.refuse(w, "body", http.StatusBadRequest, "a GET has no body here")
		return
	}
	if !r.URL.IsAbs() && s.own(w, r) {
		s.metrics.own.Inc()
		return
	}
	t, err := parseTarget(r.URL)
	if err != nil {
		s.refuse(w, "target", http.StatusBadRequest, err.Error())
		return
	}
	if repo, name, ok := s.match(t); ok {
		s.serveRepository(w, r, client, repo, name)
		return
	}
	if !set.others {
		s.refuse(w, "host", http.StatusForbidden, fmt.Sprintf("%s%s is in no repository of the cluster file, and apt.others is refuse", t.host, t.path))
		return
	}
	s.servePlain(w, r, t)
}

// allows tells whether a client is served.
func (set *settings) allows(client netip.Addr) bool {
	return slices.ContainsFunc(set.allow, func(p netip.Prefix) bool { return p.Contains(client) })
}

// clientOf is the address that asks.
func clientOf(r *http.Request) netip.Addr { return clientAt(r.RemoteAddr) }

func clientAt(remote string) netip.Addr {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

// refuse answers with a sentence.
func (s *Server) refuse(w http.ResponseWriter, why string, status int, text string) {
	s.metrics.refused.WithLabelValues(why).Inc()
	http.Error(w, text, status)
}

// match finds the repository that a target is in: by the host and path of a
// mirror or alias, or by its name as the first part of a path.
func (s *Server) match(t target) (repo *repository, name string, ok bool) {
	longest := -1
	for _, r := range s.active.Load().repositories {
		for _, alias := range append(r.aliases, target{host: r.name}) {
			rest, in := strings.CutPrefix(t.path, alias.path+"/")
			if !in || t.host != alias.host || t.query != "" || len(alias.path) <= longest && repo != nil {
				continue
			}
			repo, name, longest = r, rest, len(alias.path)
		}
	}
	// The top of a repository and its directories are pages for people.
	return repo, name, repo != nil && name != "" && !strings.HasSuffix(name, "/")
}

// serveRepository answers with a file of a repository.
func (s *Server) serveRepository(w http.ResponseWriter, r *http.Request, client netip.Addr, repo *repository, name string) {
	f, err := s.resolve(r.Context(), repo, client.String(), name)
	switch {
	case err != nil:
		s.answerError(w, err)
	case !f.listed:
		// Nothing vouches for it: it is served by HTTP's own rules.
		s.servePlain(w, r, repo.mirrors[0].base.join(name))
	case f.data != nil:
		s.serveRelease(w, r, f)
	default:
		s.recent.note(Request{s.nameOf(client), repo.name, name, f.size, s.now()})
		s.serveVouched(w, r, repo, f, name)
	}
}

// join is a file below a target.
func (t target) join(name string) target {
	t.path += "/" + name
	return t
}

// answerError tells a client why it gets nothing.
func (s *Server) answerError(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	switch {
	case isAbsent(err):
		status = http.StatusNotFound
	case errors.Is(err, errForbidden):
		status = http.StatusForbidden
	case errors.Is(err, cas.ErrNotFound):
		status = http.StatusServiceUnavailable
	}
	http.Error(w, oneLine(err), status)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// warnExpired tells, as HTTP does (RFC 7234 §5.5), that a Release is past its
// Valid-Until.
func (s *Server) warnExpired(h http.Header, g *generation) {
	if since, is := g.expired(s.now()); is {
		h.Set("Warning", fmt.Sprintf(`110 - "the Release expired %s ago"`, since.Round(1e9)))
	}
}

// contentType is what apt's own servers say of files.
func contentType(name string) string {
	switch {
	case strings.HasSuffix(name, ".deb"), strings.HasSuffix(name, ".udeb"):
		return "application/vnd.debian.binary-package"
	case strings.HasSuffix(name, ".gz"):
		return "application/gzip"
	case strings.HasSuffix(name, ".xz"):
		return "application/x-xz"
	}
	return "application/octet-stream"
}

// connect tunnels to the hosts that the file lists, and to no other.
func (s *Server) connect(w http.ResponseWriter, r *http.Request) {
	set := s.active.Load().settings
	host := r.URL.Host
	if r.URL.Path != "" || !slices.Contains(set.connect, strings.ToLower(host)) {
		s.refuse(w, "connect", http.StatusForbidden, fmt.Sprintf("CONNECT to %q is not allowed: apt.connect of the cluster file does not list it", clip(host)))
		return
	}
	s.tunnel(w, r, host)
}

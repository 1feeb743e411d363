package aptproxy

import (
	"fmt"
	"strings"
	"time"

	"holdfast/internal/health"
)

// The conditions. What follows a dot is a repository's name.
const (
	conditionStorage = "apt.storage"
	conditionFull    = "apt.disk-full"
	conditionKeyring = "apt.keyring." // its keys can't be read
	conditionOffline = "apt.offline." // no newer Release can be had
	conditionExpired = "apt.expired." // a Release that is served is past its Valid-Until
)

// observe raises and clears what is wrong with the store and the repositories.
func (s *Server) observe() {
	st := s.store.Stats()
	s.tell(conditionStorage, health.Error, st.Broken, "packages can't be stored and are passed through: %s")
	full := ""
	if st.Full {
		full = "make room, or lower apt.max"
	}
	s.tell(conditionFull, health.Warning, full, "the disk of the package cache is full: packages are passed through uncached; %s")
	for _, r := range s.active.Load().repositories {
		offline, expired := s.agedSuites(r)
		s.tell(conditionOffline+r.name, health.Warning, strings.Join(offline, "; "), "what was seen last of repository "+r.name+" is served: %s")
		s.tell(conditionExpired+r.name, health.Warning, strings.Join(expired, "; "),
			"clients refuse repository "+r.name+", unless they are told [check-valid-until=no]: %s")
	}
}

// tell raises a condition whose text has what is wrong; "" clears it.
func (s *Server) tell(name string, severity health.Severity, what, format string) {
	if what == "" {
		s.board.Clear(name)
		return
	}
	s.board.Raise(name, severity, fmt.Sprintf(format, what))
}

// agedSuites tells which suites of a repository no mirror has news of, and which
// are past their Valid-Until.
func (s *Server) agedSuites(r *repository) (offline, expired []string) {
	for _, su := range r.all() {
		g := su.current()
		if g == nil {
			continue
		}
		su.mu.Lock()
		trouble, checked := su.trouble, su.checked
		su.mu.Unlock()
		if trouble != "" {
			offline = append(offline, fmt.Sprintf("%s of %s, confirmed %s (%s)",
				su.dir, when(g.release.Date), when(checked), clip(trouble)))
		}
		if _, is := g.expired(s.now()); is {
			expired = append(expired, fmt.Sprintf("%s expired at %s", su.dir, when(g.release.ValidUntil)))
		}
	}
	return offline, expired
}

// when writes a time; a condition's text doesn't change by itself.
func when(t time.Time) string {
	if t.IsZero() {
		return "before the last start"
	}
	return t.UTC().Format(time.RFC3339)
}

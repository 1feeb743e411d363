package aptproxy

import (
	"time"

	"holdfast/aptproxy/cas"
)

// Status is how the proxy stands, for people.
type Status struct {
	Node      string         `json:"node"`
	Trouble   string         `json:"trouble,omitempty"` // why packages can't be had here; "" they can
	Store     cas.Stats      `json:"store"`
	Downloads int            `json:"downloads"` // under way
	Mirrors   []MirrorStatus `json:"mirrors"`
	Suites    []SuiteStatus  `json:"suites"`
}

// MirrorStatus is how a mirror has been.
type MirrorStatus struct {
	Repository string        `json:"repository"`
	URL        string        `json:"url"`
	Failures   int           `json:"failures"` // in a row
	Error      string        `json:"error,omitempty"`
	Latency    time.Duration `json:"latency_ns"` // to the first byte, smoothed
}

// SuiteStatus is the current generation of a suite.
type SuiteStatus struct {
	Repository  string    `json:"repository"`
	Suite       string    `json:"suite"`
	Generation  string    `json:"generation"`
	Released    time.Time `json:"released"`
	ValidUntil  time.Time `json:"valid_until,omitzero"`
	Expired     bool      `json:"expired"`
	Checked     time.Time `json:"checked"` // when a mirror last said that it is current
	Generations int       `json:"generations"`
	Trouble     string    `json:"trouble,omitempty"` // why there is no newer one
}

// Status tells how the proxy stands. It does not block.
func (s *Server) Status() Status {
	st := Status{Node: s.config.Node, Downloads: s.flights.count(), Mirrors: []MirrorStatus{}, Suites: []SuiteStatus{}}
	if s.store != nil {
		st.Store, st.Trouble = s.store.Stats(), s.trouble()
	}
	for _, r := range s.active.Load().repositories {
		for _, m := range r.mirrors {
			m.mu.Lock()
			st.Mirrors = append(st.Mirrors, MirrorStatus{r.name, m.base.url().String(), m.failures, m.lastErr, m.latency})
			m.mu.Unlock()
		}
		for _, su := range r.all() {
			g := su.current()
			if g == nil {
				continue
			}
			one := SuiteStatus{
				Repository: r.name, Suite: su.dir, Generation: g.id, Released: g.release.Date, ValidUntil: g.release.ValidUntil,
				Checked: su.lastChecked(),
			}
			_, one.Expired = g.expired(s.now())
			su.mu.Lock()
			one.Generations, one.Trouble = len(su.generations), su.trouble
			su.mu.Unlock()
			st.Suites = append(st.Suites, one)
		}
	}
	return st
}

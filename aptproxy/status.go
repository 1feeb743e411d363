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
	Requests   int64         `json:"requests"`   // that it answered since the start
	Bytes      int64         `json:"bytes"`      // of files that came from it
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

// Origin is a repository as it uses the store and the network.
type Origin struct {
	Repository string         `json:"repository"`
	Bytes      int64          `json:"bytes"` // of the store
	Max        int64          `json:"max"`   // its quota; 0 none
	Mirrors    []MirrorStatus `json:"mirrors"`
}

// Origins lists the repositories with their mirrors.
func (s *Server) Origins() []Origin {
	sizes := s.bytesOf()
	list := []Origin{}
	for _, r := range s.active.Load().repositories {
		one := Origin{Repository: r.name, Bytes: sizes[r.name], Max: r.max}
		for _, m := range r.mirrors {
			one.Mirrors = append(one.Mirrors, m.status(r.name))
		}
		list = append(list, one)
	}
	return list
}

func (m *mirror) status(repository string) MirrorStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return MirrorStatus{repository, m.base.url().String(), m.failures, m.lastErr, m.latency, m.requests, m.bytes}
}

// Status tells how the proxy stands. It does not block.
func (s *Server) Status() Status {
	st := Status{Node: s.config.Node, Downloads: s.flights.count(), Mirrors: []MirrorStatus{}, Suites: []SuiteStatus{}}
	if store := s.room.Load(); store != nil { // who asks may do so before Run, and after
		st.Store, st.Trouble = store.Stats(), s.trouble()
	}
	for _, r := range s.active.Load().repositories {
		for _, m := range r.mirrors {
			st.Mirrors = append(st.Mirrors, m.status(r.name))
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

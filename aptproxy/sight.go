package aptproxy

import "sync"

// maxSightings bounds what is remembered of clients.
const maxSightings = 1 << 16

// sightings remember which generation of a suite a client saw last: what it
// asks for by name is of that one.
type sightings struct {
	mu sync.Mutex
	by map[sighting]*generation
}

type sighting struct{ client, repository, dir string }

func (s *sightings) saw(client, repository, dir string, g *generation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[sighting]*generation{}
	}
	key := sighting{client, repository, dir}
	if _, had := s.by[key]; !had && len(s.by) >= maxSightings {
		for other := range s.by { // any: who is forgotten gets the current one
			delete(s.by, other)
			break
		}
	}
	s.by[key] = g
}

func (s *sightings) of(client, repository, dir string) *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[sighting{client, repository, dir}]
}

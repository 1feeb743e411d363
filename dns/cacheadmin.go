package dns

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// CacheEntry is a remembered answer, for people.
type CacheEntry struct {
	Name    string  `json:"name"`
	Type    string  `json:"type"`
	Rcode   string  `json:"rcode"`
	DO      bool    `json:"do,omitempty"`
	CD      bool    `json:"cd,omitempty"`
	Domain  string  `json:"domain"`       // whose forwarders said so
	Left    float64 `json:"left_seconds"` // negative: stale since
	Hits    uint32  `json:"hits"`
	Records int     `json:"records"`
}

// CacheStats is what the cache holds and may.
type CacheStats struct {
	Entries int `json:"entries"`
	Bytes   int `json:"bytes"`
	Room    int `json:"room_bytes"`
}

// CacheStats does not block.
func (s *Server) CacheStats() CacheStats {
	c := s.cache()
	entries, bytes := c.usage()
	return CacheStats{Entries: entries, Bytes: bytes, Room: c.room * cacheShards}
}

// CacheDump lists what is remembered below a domain ("." is all), by name.
func (s *Server) CacheDump(below name) []CacheEntry {
	list := []CacheEntry{}
	now := s.now()
	s.cache().each(func(e *entry) {
		if !e.key.name.below(below) {
			return
		}
		list = append(list, CacheEntry{
			Name: e.key.name.String(), Type: typeName(e.key.kind), Rcode: dns.RcodeToString[e.rcode],
			DO: e.key.mode&modeDO != 0, CD: e.key.mode&modeCD != 0, Domain: e.domain,
			Left: e.left(now).Round(time.Millisecond).Seconds(), Hits: e.hits.Load(), Records: len(e.spans),
		})
	})
	slices.SortFunc(list, func(a, b CacheEntry) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type)) })
	return list
}

func typeName(kind uint16) string { return dns.Type(kind).String() }

// CacheFlush forgets what is below a domain and tells how many answers that
// were.
func (s *Server) CacheFlush(below name) int {
	return s.cache().flush(func(e *entry) bool { return e.key.name.below(below) })
}

// domainOf reads the domain of a request; all without one.
func domainOf(r *http.Request) (name, error) {
	if text := r.URL.Query().Get("below"); text != "" {
		return parseName(text)
	}
	return root, nil
}

// forDomain wraps an answer about a domain.
func forDomain(answer func(below name) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		below, err := domainOf(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		writeJSON(w, answer(below))
	}
}

package aptproxy

import (
	"sync"
	"time"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
)

// ranks is how much each blob is needed, as of a while ago.
type ranks struct {
	mu   sync.Mutex
	by   map[cas.Sum]cas.Rank
	made time.Time
}

// ranksFor is how long ranks are used: an eviction asks for every blob's.
const ranksFor = 5 * time.Second

// rank tells the store how much a blob is needed. Pinned are the Release files
// of all generations, the indices of them that clients use, and what frozen
// generations vouch for; what the others vouch for goes after the rest.
func (s *Server) rank(sum cas.Sum) cas.Rank {
	s.ranks.mu.Lock()
	defer s.ranks.mu.Unlock()
	if s.ranks.by == nil || time.Since(s.ranks.made) > ranksFor {
		s.ranks.by, s.ranks.made = s.rankAll(), time.Now()
	}
	return s.ranks.by[sum]
}

func (s *Server) rankAll() map[cas.Sum]cas.Rank {
	by := map[cas.Sum]cas.Rank{}
	for _, r := range s.active.Load().repositories {
		s.rankRepository(r, by)
	}
	return by
}

// rankRepository ranks what a repository vouches for.
func (s *Server) rankRepository(r *repository, by map[cas.Sum]cas.Rank) {
	for _, su := range r.all() {
		used := su.usedNames()
		for _, g := range su.all() {
			g.rankInto(by, used, cas.Referenced)
		}
		if v := s.views.Load(); v != nil {
			for _, one := range v.list {
				if g := one.suites[[2]string{r.name, su.dir}]; g != nil {
					g.rankInto(by, used, cas.Pinned)
				}
			}
		}
	}
}

func (su *suite) usedNames() []string {
	su.mu.Lock()
	defer su.mu.Unlock()
	var list []string
	for name := range su.used {
		list = append(list, name)
	}
	return list
}

// rankInto ranks what a generation needs: its own files are pinned, what they
// list has the rank that is given.
func (g *generation) rankInto(by map[cas.Sum]cas.Rank, used []string, listed cas.Rank) {
	blobs := g.releaseBlobs()
	for _, text := range []string{blobs.Inline, blobs.Plain, blobs.Signature} {
		if sum, err := parseHex(text); err == nil {
			by[sum] = cas.Pinned
		}
	}
	for _, name := range used {
		if f, ok := g.release.Files[name]; ok {
			by[cas.Sum(f.Sum)] = cas.Pinned
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, cell := range g.tables {
		if t := cell.ready.Load(); t != nil {
			for _, row := range t.rows {
				by[row.sum] = max(by[row.sum], listed)
			}
		}
	}
}

func parseHex(text string) (cas.Sum, error) {
	sum, err := deb.ParseSum(text)
	return cas.Sum(sum), err
}

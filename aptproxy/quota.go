package aptproxy

import (
	"cmp"
	"slices"

	"holdfast/aptproxy/cas"
)

// quotas keeps each repository that has one below its quota: what was used
// longest ago goes first, what is pinned stays.
func (s *Server) quotas() {
	for _, r := range s.active.Load().repositories {
		if r.max == 0 {
			continue
		}
		owned := map[cas.Sum]cas.Rank{}
		s.rankRepository(r, owned)
		ranks := s.rankAll() // as of now: what was just pinned must not go
		var total int64
		var list []cas.BlobInfo
		for _, b := range s.store.Blobs() {
			if _, ours := owned[b.Sum]; !ours {
				continue
			}
			total += b.Size
			if ranks[b.Sum] < cas.Pinned {
				list = append(list, b)
			}
		}
		if total <= r.max {
			continue
		}
		slices.SortFunc(list, func(a, b cas.BlobInfo) int { return cmp.Compare(a.Used, b.Used) })
		removed := 0
		for _, b := range list {
			if total <= r.max {
				break
			}
			if err := s.store.Remove(b.Sum); err != nil {
				s.log.Error("a file can't be removed for its repository's quota", "repository", r.name, "sum", b.Sum, "error", err)
				continue
			}
			total -= b.Size
			removed++
		}
		s.log.Info("a repository was over its quota", "repository", r.name, "removed", removed, "bytes", total, "max", r.max)
	}
}

// bytesOf is how much of the store each repository has; what two of them vouch
// for counts for both.
func (s *Server) bytesOf() map[string]int64 {
	sizes := map[string]int64{}
	blobs := s.store.Blobs()
	for _, r := range s.active.Load().repositories {
		owned := map[cas.Sum]cas.Rank{}
		s.rankRepository(r, owned)
		for _, b := range blobs {
			if _, ours := owned[b.Sum]; ours {
				sizes[r.name] += b.Size
			}
		}
	}
	return sizes
}

package journal

import (
	"os"
	"slices"
	"time"
)

// Since is the first record of the oldest segment that was written to at a time
// or later: all records that were appended from then on are behind it. It looks
// at the files' times and reads none of them.
func (j *Journal) Since(at time.Time) uint64 {
	j.mu.Lock()
	list, end := slices.Clone(j.segments), j.end
	j.mu.Unlock()
	first := end
	for i := len(list) - 1; i >= 0; i-- {
		info, err := os.Stat(list[i].path)
		if err == nil && info.ModTime().Before(at) {
			break
		}
		first = list[i].first // one that can't be looked at may have some
	}
	return first
}

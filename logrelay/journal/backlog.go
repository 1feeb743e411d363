package journal

import "slices"

// Behind is how many bytes the journal takes from the segment with a record on:
// what it keeps for an output whose cursor stands there. 0: there is no such
// record yet.
func (j *Journal) Behind(next uint64) (bytes int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if next >= j.end {
		return 0
	}
	for i, s := range j.segments {
		if i+1 == len(j.segments) || j.segments[i+1].first > next {
			bytes += s.end
		}
	}
	return bytes
}

// Newest is the first record of the newest segments that take most bytes
// together, and of the last one, however large it is.
func (j *Journal) Newest(most int64) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	first, bytes := j.end, int64(0)
	for i := len(j.segments) - 1; i >= 0; i-- {
		if bytes += j.segments[i].end; bytes > most && first != j.end {
			break
		}
		first = j.segments[i].first
	}
	return first
}

// Lines is how many records of the journal have numbers from one on and before to:
// those that a failed write or a lost segment used up don't count. What a segment
// that was trimmed had counts in full.
func (j *Journal) Lines(from, to uint64) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	to = min(to, j.end)
	if from >= to {
		return 0
	}
	lines := to - from
	for _, s := range slices.Backward(j.segments) {
		// What is in front of a younger one may have been so for this one, which
		// never had a block.
		first, end := max(s.first-min(s.first, uint64(s.unused)), from), min(s.first, to)
		if first < end {
			lines -= end - first
			to = first
		}
	}
	return lines
}

package journal

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

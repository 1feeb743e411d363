package raftstore

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Raft alone tells followers of a commit after one or two of its commit
// time-outs, and the leader's pipelines linger when nobody waits; both are made so
// long here that a busy machine does not matter.
func TestWriteOnAFollowerDoesNotWaitForTheCommitTimeout(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.commit = 3 * time.Second
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	o := h.follower()
	var writes, reads []time.Duration
	for i := range 11 {
		start := time.Now()
		o.put(fmt.Sprint("k", i), "v")
		writes = append(writes, time.Since(start))
		h.leader().put("other", fmt.Sprint(i))
		start = time.Now()
		o.barrier()
		reads = append(reads, time.Since(start))
		if got := o.get("other"); got != fmt.Sprint(i) {
			t.Fatalf("after a read barrier: %q, want %d", got, i)
		}
	}
	slices.Sort(writes)
	slices.Sort(reads)
	if writes[5] >= h.commit || reads[5] >= h.commit {
		t.Errorf("median write %v, read %v on a follower: Raft's own %v was waited for", writes[5], reads[5], h.commit)
	}
}

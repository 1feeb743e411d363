package vrrp

import (
	"encoding/json"
	"fmt"
	"time"
)

// KindLease is the kind of the documents that are leases of fenced addresses, by
// router: who holds addresses must see and write them.
const KindLease = "vrrp/lease"

// leaseRecord is what the store has of a lease.
type leaseRecord struct {
	Node  string        // whose it is or was
	Run   string        // which life of its agent
	TTL   time.Duration // minLease to maxLease
	Count uint64        // grows with every write, so that each is a change
	Free  bool          // given back: nobody has the addresses
}

// Bounds of a lease's TTL. In less time an election of the store's leader would
// take the addresses away, and the kernel, which counts whole seconds and is up
// to one late, would remove them too late.
const (
	minLease     = 2 * time.Second
	maxLease     = time.Minute
	defaultLease = 3 * time.Second
)

// wireRecord is a record as it is written.
type wireRecord struct {
	Node  string `json:"node"`
	Run   string `json:"run"`
	TTL   int64  `json:"ttl_ms"`
	Count uint64 `json:"count"`
	Free  bool   `json:"free,omitempty"`
}

func (r leaseRecord) encode() []byte {
	text, err := json.Marshal(wireRecord{r.Node, r.Run, r.TTL.Milliseconds(), r.Count, r.Free})
	if err != nil {
		panic(err) // texts and numbers
	}
	return text
}

// parseLeaseRecord reads one. What can't be read is nobody's but may be in
// force: its reader treats it as a stranger's with the longest TTL.
func parseLeaseRecord(text []byte) (leaseRecord, error) {
	var w wireRecord
	if err := json.Unmarshal(text, &w); err != nil {
		return leaseRecord{TTL: maxLease}, fmt.Errorf("a lease's record can't be read: %w", err)
	}
	if w.TTL < minLease.Milliseconds() || w.TTL > maxLease.Milliseconds() || w.Node == "" || w.Run == "" {
		return leaseRecord{TTL: maxLease}, fmt.Errorf("a lease's record has node %q, run %q and a TTL of %d ms; the range is %d to %d ms",
			w.Node, w.Run, w.TTL, minLease.Milliseconds(), maxLease.Milliseconds())
	}
	return leaseRecord{Node: w.Node, Run: w.Run, TTL: time.Duration(w.TTL) * time.Millisecond, Count: w.Count, Free: w.Free}, nil
}

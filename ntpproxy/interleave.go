package ntpproxy

import (
	"sync"
	"time"

	"holdfast/internal/ntp"
)

// pairs remembers of the last replies to clients in interleaved mode (RFC 9769
// §2) when their request arrived and when the reply left: the next reply
// carries the latter, more exact than any time that a packet can tell of its
// own leaving. All workers share it: the next request comes from another port.
// A pair that was overwritten costs its client one basic reply.
type pairs struct {
	shards [pairShards]pairShard
}

const (
	pairShards = 16
	pairSlots  = 1024 // of a shard
)

type pairShard struct {
	mu    sync.Mutex
	slots [pairSlots]pair
}

type pair struct {
	client  uint64
	arrived ntp.Timestamp
	left    ntp.Timestamp
}

// find locks and returns the slot of a time of arrival.
func (p *pairs) find(arrived ntp.Timestamp) (*pairShard, *pair) {
	hash := uint64(arrived) * 0x9e3779b97f4a7c15
	s := &p.shards[hash>>60]
	s.mu.Lock()
	return s, &s.slots[hash>>40%pairSlots]
}

func (p *pairs) put(client uint64, arrived, left ntp.Timestamp) {
	s, slot := p.find(arrived)
	*slot = pair{client, arrived, left}
	s.mu.Unlock()
}

// correct tells a better time of leaving: a little later than the one known.
func (p *pairs) correct(arrived, left ntp.Timestamp, most time.Duration) {
	s, slot := p.find(arrived)
	if later := left.Sub(slot.left); slot.arrived == arrived && later >= 0 && later <= most {
		slot.left = left
	}
	s.mu.Unlock()
}

// take gives a client its pair, once: a second request with the same origin
// is a copy of the first.
func (p *pairs) take(client uint64, arrived ntp.Timestamp) (left ntp.Timestamp, ok bool) {
	s, slot := p.find(arrived)
	defer s.mu.Unlock()
	if slot.arrived != arrived || slot.client != client || arrived == 0 {
		return 0, false
	}
	left = slot.left
	*slot = pair{}
	return left, true
}

package ntpproxy

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// limiter bounds how often each stranger is answered: burst requests at once,
// and one each interval. It remembers a fixed number of clients and forgets
// first who has been quiet longest. It may be used from any goroutine.
type limiter struct {
	interval time.Duration
	depth    time.Duration // burst, as time
	seed     uint64
	shards   [limitShards]limitShard
}

// A client has a set of limitWays places in a shard: no more is looked at.
const (
	limitShards = 16
	limitSets   = 256 // of a shard
	limitWays   = 4
)

type limitShard struct {
	mu   sync.Mutex
	sets [limitSets][limitWays]bucket
}

// bucket is a leaky bucket as the time at which it is empty (GCRA).
type bucket struct {
	client uint64
	empty  time.Duration // by the limiter's clock
	excess uint32        // requests above the limit since it was last below
}

// newLimiter makes a limiter. The seed, a secret, keeps strangers from
// choosing addresses that share one place.
func newLimiter(interval time.Duration, burst int, seed uint64) *limiter {
	return &limiter{interval: interval, depth: time.Duration(burst) * interval, seed: seed | 1}
}

// take counts a request, at a time by any clock that never goes back. It
// returns 0 if the request is within the limit, else how many in a row were
// above it.
func (l *limiter) take(client uint64, now time.Duration) (excess uint32) {
	hash := client * l.seed
	hash ^= hash >> 32
	hash *= 0x9e3779b97f4a7c15
	s := &l.shards[hash>>60]
	s.mu.Lock()
	defer s.mu.Unlock()
	set := &s.sets[hash>>40%limitSets]
	at := &set[0]
	for i := range set {
		if set[i].client == client {
			at = &set[i]
			break
		}
		if set[i].empty < at.empty {
			at = &set[i]
		}
	}
	if at.client != client {
		*at = bucket{client: client}
	}
	at.empty = max(at.empty, now)
	if at.empty+l.interval > now+l.depth {
		at.excess++
		return at.excess
	}
	at.empty += l.interval
	at.excess = 0
	return 0
}

// clientKey is the address of a client for limits and tables, never 0. An
// IPv6 client is its /64: it can choose the rest.
func clientKey(addr netip.Addr) uint64 {
	if addr.Is4() {
		a := addr.As4()
		return 1<<32 | uint64(binary.BigEndian.Uint32(a[:])) // no global /64 looks like it
	}
	a := addr.As16()
	return max(1, binary.BigEndian.Uint64(a[:]))
}

package dns

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// cacheKey is a question as forwarders see it. What a client with DO is given
// differs from what one without is, and what a client with CD is given must
// not reach one that relies on the forwarder's validation (RFC 4035 §4.7).
type cacheKey struct {
	name name
	kind uint16
	mode mode
}

// mode is the flags of a question that change its answer.
type mode uint8

const (
	modeDO mode = 1 << iota
	modeCD
)

func (q *query) mode() mode {
	var m mode
	if q.do {
		m |= modeDO
	}
	if q.flags&bitCD != 0 {
		m |= modeCD
	}
	return m
}

// The times of RFC 8767 §5 and RFC 9520 §3.2.
const (
	staleTTL       = 30 // seconds, of a stale answer
	staleAfterWait = 1800 * time.Millisecond
	failureRecheck = 30 * time.Second // no forwarder is asked again for what has a stale answer
	failureTTL     = 2                // seconds, of a failure without one
	maxNegativeTTL = 3600             // seconds (RFC 2308 §5)
)

// Prefetch: what was asked for a few times is asked again when a tenth of its
// time is left.
const (
	popular       = 3
	prefetchShare = 10
)

const cacheShards = 64

// cache remembers forwarders' answers, whole messages by question: a record
// that came along for another name never answers a question for it, so that
// there is nothing to poison but what was asked. It is bounded in bytes. All
// methods may be called from any goroutine.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard
	room   int           // bytes of one shard; 0: nothing is kept
	maxTTL uint32        // seconds
	stale  time.Duration // for how long an expired answer is kept
	next   atomic.Uint32 // the shard to be swept next
}

type cacheShard struct {
	mu      sync.RWMutex
	entries map[cacheKey]*entry
	bytes   int
}

// cacheSettings is the section's `cache`, understood.
type cacheSettings struct {
	bytes  int           // 0: no cache
	maxTTL time.Duration // of any record
	stale  time.Duration // 0: expired answers are given up
}

func newCache(set cacheSettings) *cache {
	c := &cache{seed: maphash.MakeSeed(), room: set.bytes / cacheShards, maxTTL: seconds(set.maxTTL), stale: set.stale}
	for i := range c.shards {
		c.shards[i].entries = map[cacheKey]*entry{}
	}
	return c
}

func (c *cache) shard(lowered []byte) *cacheShard {
	return &c.shards[maphash.Bytes(c.seed, lowered)%cacheShards]
}

// get finds what is known about a question, fresh or not; nil for nothing. It
// does not allocate.
func (c *cache) get(q *query) *entry {
	s := c.shard(q.name)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries[cacheKey{name(q.name), q.kind, q.mode()}]
}

// put keeps an entry in the place of what was known, and makes room for it:
// of a few it comes upon, the one that was not used for the longest goes.
func (c *cache) put(e *entry) {
	if e.size() > c.room/2 {
		return
	}
	s := c.shard([]byte(e.key.name))
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.entries[e.key]; old != nil {
		s.bytes -= old.size()
	}
	s.entries[e.key] = e
	s.bytes += e.size()
	for s.bytes > c.room {
		s.evict(e)
	}
}

// evict removes one entry, not the one just put.
func (s *cacheShard) evict(keep *entry) {
	const sample = 8
	var oldest *entry
	n := 0
	for _, e := range s.entries { // in random order
		if e == keep {
			continue
		}
		if oldest == nil || e.used.Load() < oldest.used.Load() {
			oldest = e
		}
		if n++; n == sample {
			break
		}
	}
	s.remove(oldest)
}

func (s *cacheShard) remove(e *entry) {
	delete(s.entries, e.key)
	s.bytes -= e.size()
}

// sweep removes what is of no more use from one shard, the next at each call.
func (c *cache) sweep(now time.Time) {
	s := &c.shards[c.next.Add(1)%cacheShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if !c.useful(e, now) {
			s.remove(e)
		}
	}
}

// useful tells whether an entry can answer, if only as a stale one.
func (c *cache) useful(e *entry, now time.Time) bool {
	left := e.left(now)
	return left > 0 || e.rcode != dns.RcodeServerFailure && -left < c.stale
}

// flush removes the entries that a test picks, and tells how many.
func (c *cache) flush(pick func(*entry) bool) (removed int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, e := range s.entries {
			if pick(e) {
				s.remove(e)
				removed++
			}
		}
		s.mu.Unlock()
	}
	return removed
}

// each calls f for every entry, in no order.
func (c *cache) each(f func(*entry)) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			f(e)
		}
		s.mu.RUnlock()
	}
}

// usage is how many entries there are, and what they take in bytes.
func (c *cache) usage() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.RLock()
		entries += len(s.entries)
		bytes += s.bytes
		s.mu.RUnlock()
	}
	return entries, bytes
}

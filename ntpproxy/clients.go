package ntpproxy

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"holdfast/internal/ntp"
)

// clients remembers of each client what its requests tell of its clock: the
// time that it put into a request is, less the way here, the time that it
// believed in. Many clients put a random number there instead (they keep their
// time to themselves: RFC 8633 §3, draft-ietf-ntp-data-minimization), which no
// two requests in a row agree on. It holds a fixed number of clients and
// forgets first who has been quiet longest. All workers share it.
type clients struct {
	seed   uint64
	shards [clientShards]clientShard
}

// A client has a set of clientWays places in a shard: no more is looked at.
const (
	clientShards = 16
	clientSets   = 256 // of a shard
	clientWays   = 4
)

type clientShard struct {
	mu   sync.Mutex
	sets [clientSets][clientWays]client
}

// client is what is known of one.
type client struct {
	addr     netip.Addr
	seen     time.Duration // by a clock that never goes back
	told     time.Duration // when a request last agreed with the one before it; 0 never
	ahead    time.Duration // of us, as that request told, less its way here
	claimed  time.Duration // as the last request has it, true or random
	requests uint64
	version  uint8
}

// confirms is how far what two requests in a row tell may be apart, beside
// clockDrift: the way of one was longer. Random numbers come that close once in
// two thousand million times.
const confirms = time.Second

// clockDrift is more than any client's clock goes wrong by in between, in
// seconds per second: one that is slewed at chronyd's fastest.
const clockDrift = 0.1

// see takes a request of a client: the time that it put into it, when it
// arrived by our clock, and the time by a clock that never goes back.
func (c *clients) see(addr netip.Addr, sent, arrived ntp.Timestamp, version uint8, now time.Duration) {
	hash := clientHash(addr, c.seed)
	s := &c.shards[hash>>60]
	s.mu.Lock()
	defer s.mu.Unlock()
	set := &s.sets[hash>>40%clientSets]
	at := &set[0]
	for i := range set {
		if set[i].addr == addr {
			at = &set[i]
			break
		}
		if set[i].seen < at.seen || !set[i].addr.IsValid() && at.addr.IsValid() {
			at = &set[i]
		}
	}
	ahead := sent.Sub(arrived)
	if at.addr != addr {
		*at = client{addr: addr}
	} else if d := (ahead - at.claimed).Abs(); sent != 0 && d <= confirms+time.Duration(clockDrift*float64(now-at.seen)) {
		at.ahead, at.told = ahead, max(1, now)
	}
	at.claimed, at.seen, at.version = ahead, now, version
	at.requests++
}

// clientHash spreads addresses. The seed, a secret, keeps anyone from choosing
// addresses that share a place.
func clientHash(addr netip.Addr, seed uint64) uint64 {
	hash := clientKey(addr)
	if !addr.Is4() {
		b := addr.As16()
		for _, low := range b[8:] {
			hash = (hash ^ uint64(low)) * 0x100000001b3
		}
	}
	hash *= seed | 1
	hash ^= hash >> 32
	return hash * 0x9e3779b97f4a7c15
}

// forgottenAfter is how long a client that asks no more is still spoken of.
const forgottenAfter = time.Hour

// list is who was seen within the last hour, those whose clocks are furthest
// off first, and then those that don't tell.
func (c *clients) list(now time.Duration) (list []client) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for _, set := range s.sets {
			for _, one := range set {
				if one.addr.IsValid() && now-one.seen <= forgottenAfter {
					list = append(list, one)
				}
			}
		}
		s.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b client) int {
		return cmp.Or(-cmp.Compare(a.off(), b.off()), a.addr.Compare(b.addr))
	})
	return list
}

// tells whether the client's requests carry its time: two in a row did, within
// an hour of the last.
func (c *client) tells() bool { return c.told != 0 && c.seen-c.told <= forgottenAfter }

// off is how far the client's clock is from ours; -1 unless it tells.
func (c *client) off() time.Duration {
	if !c.tells() {
		return -1
	}
	return c.ahead.Abs()
}

package logrelay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// visits are the open RELP sessions. While an address has another, the last
// lines that are stored of it may be the other's: then nothing is dropped, and
// what fits is counted as suspected. Its methods may be called from any
// goroutine; the zero value has none.
type visits struct {
	mu   sync.Mutex
	here map[netip.Addr]map[*visit]bool
}

// visit is an open session.
type visit struct{ heard atomic.Int64 }

// aliveFor is how long after its last bytes an open session counts as one that
// has a client: one whose cable was cut stays open until the kernel gives up.
const aliveFor = 30 * time.Second

// enter says that a session of an address begins; leave ends it.
func (v *visits) enter(source netip.Addr, now int64) *visit {
	own := &visit{}
	own.heard.Store(now)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.here == nil {
		v.here = map[netip.Addr]map[*visit]bool{}
	}
	if v.here[source] == nil {
		v.here[source] = map[*visit]bool{}
	}
	v.here[source][own] = true
	return own
}

// alone tells whether the address has no other session with a client.
func (v *visits) alone(source netip.Addr, own *visit, now int64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for other := range v.here[source] {
		if other != own && now-other.heard.Load() < int64(aliveFor) {
			return false
		}
	}
	return true
}

func (v *visits) leave(source netip.Addr, own *visit) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.here[source], own)
	if len(v.here[source]) == 0 {
		delete(v.here, source)
	}
}

// compareAlone has frames that look sent again dropped only while the address
// has no other session with a client; else they are stored, and counted.
func (c *relpConn) compareAlone() {
	if c.resent == nil {
		return
	}
	c.resent.shared = func() bool {
		if c.s.visits.alone(c.source, c.own, time.Now().UnixNano()) {
			return false
		}
		c.s.metrics.doubted.Inc() // the last: judged counts those before it
		return true
	}
}

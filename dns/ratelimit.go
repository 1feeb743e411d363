package dns

import (
	"hash/maphash"
	"net/netip"
	"runtime"
	"time"

	"github.com/miekg/dns"
)

// limiter is response rate limiting: a server that answers anybody is an
// amplifier for who writes another's address on his questions. Equal answers
// to one network outside the cluster are bounded; every second one too many is
// an empty answer with TC, so that somebody real comes again over TCP or with
// a cookie, and the rest are silence. It belongs to one worker, which sees its
// share of the clients, and never grows.
type limiter struct {
	seed  maphash.Seed
	slots []bucket // made when they are needed: most workers never do
}

// bucket counts the answers to one network. Two that fall into the same one
// share it: a slot is never searched for.
type bucket struct {
	tokens float64
	at     time.Time
	slip   bool // the last one too many was silence
}

const (
	limiterSlots = 1 << 13
	prefix4      = 24 // bits of an IPv4 network (and of IPv6 below) that is one
	prefix6      = 56
)

func newLimiter() *limiter { return &limiter{seed: maphash.MakeSeed()} }

// workerRate is one worker's share of a server's rate, at least 1 a second; 0
// for none.
func workerRate(rate int) float64 {
	if rate == 0 {
		return 0
	}
	return max(1, float64(rate)/float64(runtime.GOMAXPROCS(0)))
}

// judgement is what becomes of an answer.
type judgement int

const (
	judgePass judgement = iota
	judgeSlip           // TC, and nothing else
	judgeDrop
)

// judge counts an answer to a client; rate is of answers per second.
func (l *limiter) judge(client netip.Addr, q *query, a answer, now time.Time, rate float64) judgement {
	if l.slots == nil {
		l.slots = make([]bucket, limiterSlots)
	}
	b := &l.slots[l.hash(client, q, a)%limiterSlots]
	if b.at.IsZero() {
		b.tokens = rate
	} else {
		b.tokens = min(rate, b.tokens+rate*max(0, now.Sub(b.at).Seconds()))
	}
	b.at = now
	if b.tokens >= 1 {
		b.tokens--
		return judgePass
	}
	if b.slip = !b.slip; b.slip {
		return judgeSlip
	}
	return judgeDrop
}

// hash tells answers apart: of data by their name, of absence by the zone,
// since names that don't exist are as many as an attacker likes, and errors
// not at all.
func (l *limiter) hash(client netip.Addr, q *query, a answer) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	bits := prefix4
	if client = client.Unmap(); client.Is6() {
		bits = prefix6
	}
	network, _ := client.WithZone("").Prefix(bits) // bits are in range
	from := network.Addr().As16()
	_, _ = h.Write(from[:])
	switch {
	case a.zone == nil:
	case a.rcode == dns.RcodeSuccess && a.set != nil:
		_, _ = h.Write(q.name)
	default:
		_, _ = h.WriteString(a.zone.label)
	}
	return h.Sum64()
}

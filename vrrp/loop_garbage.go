package vrrp

import (
	"errors"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Reasons why a packet does not come to the machine; its own are Drop's.
const (
	dropTTL     = "ttl" // not 255: it crossed a router
	dropVRID    = "no_router"
	dropReceive = "receive_error"
)

// dropOf is the label for what Parse complained about.
func dropOf(err error) string {
	for _, known := range [...]struct {
		err   error
		label string
	}{
		{ErrShort, "short"}, {ErrVersion, "bad_version"}, {ErrType, "type"}, {ErrVRID, "bad_vrid"},
		{ErrInterval, "bad_interval"}, {ErrChecksum, "checksum"},
	} {
		if errors.Is(err, known.err) {
			return known.label
		}
	}
	return "malformed"
}

// Garbage is logged once for a reason and a source, then not again for
// garbageEvery. However many sources there are, at most garbageSources are
// remembered, and new ones are logged no more until these are forgotten.
const (
	garbageEvery   = 10 * time.Minute
	garbageSources = 256
)

type garbageKey struct {
	reason string
	source netip.Addr
}

// garbage counts what was dropped and remembers what was said about it.
type garbage struct {
	counters map[string]prometheus.Counter
	said     map[garbageKey]time.Time
	since    time.Time // of the oldest of said
}

// news tells whether a drop is to be logged.
func (g *garbage) news(key garbageKey, now time.Time) bool {
	if len(g.said) > 0 && now.Sub(g.since) > garbageEvery {
		clear(g.said)
	}
	if _, known := g.said[key]; known || len(g.said) >= garbageSources {
		return false
	}
	if len(g.said) == 0 {
		g.since = now
	}
	g.said[key] = now
	return true
}

// drop counts a packet that was not taken.
func (l *loop) drop(p *port, reason string, source netip.Addr, vrid uint8) {
	counter := l.garbage.counters[reason]
	if counter == nil {
		counter = l.metrics.dropped.WithLabelValues(reason)
		l.garbage.counters[reason] = counter
	}
	counter.Inc()
	if l.garbage.news(garbageKey{reason, source}, time.Now()) {
		l.log.Warn("advert not taken; more of the kind are counted only", "reason", reason, "source", source,
			"vrid", vrid, "interface", p.link.Name)
	}
}

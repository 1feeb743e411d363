package dns

import (
	"fmt"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the README lists.
type metrics struct {
	queries         *prometheus.CounterVec
	duration        *prometheus.HistogramVec
	malformed       *prometheus.CounterVec
	dropped         *prometheus.CounterVec
	forwarded       *prometheus.CounterVec
	forwardDuration *prometheus.HistogramVec
	compiles        *prometheus.CounterVec
	compileDuration prometheus.Histogram
	names           prometheus.Gauge
	connections     prometheus.Gauge
	panics          prometheus.Counter
	caches          *prometheus.CounterVec
	transfers       *prometheus.CounterVec
	notifies        *prometheus.CounterVec

	cached  cacheCounters
	slipped prometheus.Counter  // answers cut for their rate
	limited prometheus.Counter  // and those dropped for it
	local   prometheus.Observer // duration of answers from the table
	asked   prometheus.Observer // duration of answers by forwarders
}

// cacheCounters are the series of metrics.caches.
type cacheCounters struct{ hit, miss, stale, joined, prefetch prometheus.Counter }

// newMetrics makes the metrics and registers them. age gives the seconds
// since this replica of the state was last known to be up to date, usage what
// the cache holds and takes.
func newMetrics(reg prometheus.Registerer, age func() float64, usage func() (entries, bytes int)) (*metrics, error) {
	m := &metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_dns_queries_total", Help: "Questions answered, by zone or forwarded domain, type, rcode and transport.",
		}, []string{"zone", "type", "rcode", "transport"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_dns_response_duration_seconds", Help: "Time to answer: of a batch of queries from the table, or of one question from a forwarder.",
			Buckets: prometheus.ExponentialBuckets(4e-6, 4, 12), // 4 µs to 17 s
		}, []string{"source"}),
		malformed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_dns_malformed_total", Help: "Packets that were no question to look up, by reason.",
		}, []string{"reason"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_dns_dropped_total", Help: "Questions and connections given up for want of room, and answers that could not be sent, by reason.",
		}, []string{"reason"}),
		forwarded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_dns_forwarded_total", Help: "Questions put to a forwarder, by forwarder and result.",
		}, []string{"upstream", "result"}),
		forwardDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "holdfast_dns_forward_duration_seconds", Help: "Time of one try at one forwarder.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12), // 0.5 ms to 12 s
		}, []string{"upstream"}),
		compiles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_dns_compiles_total", Help: "Tables compiled, by kind: full or changed names only.",
		}, []string{"kind"}),
		compileDuration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "holdfast_dns_compile_duration_seconds", Help: "Time to compile a table and put it in use.",
			Buckets: prometheus.ExponentialBuckets(1e-5, 4, 9), // 10 µs to 0.65 s
		}),
		names: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_dns_virtual_names", Help: "Names made from the catalog: of the virtual zone, and of addresses.",
		}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_dns_tcp_connections", Help: "Open TCP connections.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_dns_panics_total", Help: "Questions whose handling panicked: bugs.",
		}),
	}
	m.caches = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_dns_cache_total", Help: "Questions for forwarders, by what became of them: hit, miss, stale, joined (another was under way) or prefetch.",
	}, []string{"result"})
	m.cached = cacheCounters{
		hit: m.caches.WithLabelValues("hit"), miss: m.caches.WithLabelValues("miss"), stale: m.caches.WithLabelValues("stale"),
		joined: m.caches.WithLabelValues("joined"), prefetch: m.caches.WithLabelValues("prefetch"),
	}
	m.transfers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_dns_transfers_total", Help: "Zone transfers, by zone and result.",
	}, []string{"zone", "result"})
	m.notifies = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_dns_notifies_total", Help: "NOTIFY messages to secondaries, by secondary and result.",
	}, []string{"secondary", "result"})
	m.slipped, m.limited = m.dropped.WithLabelValues("rate_cut"), m.dropped.WithLabelValues("rate")
	cacheEntries := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "holdfast_dns_cache_entries", Help: "Answers of forwarders that are remembered.",
	}, func() float64 { n, _ := usage(); return float64(n) })
	cacheBytes := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "holdfast_dns_cache_bytes", Help: "Memory that the remembered answers take.",
	}, func() float64 { _, n := usage(); return float64(n) })
	tableAge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "holdfast_dns_table_age_seconds", Help: "Time since a leader last confirmed the state that answers are made from; NaN if none has since the start.",
	}, age)
	for _, c := range []prometheus.Collector{
		m.queries, m.duration, m.malformed, m.dropped, m.forwarded, m.forwardDuration,
		m.compiles, m.compileDuration, m.names, m.connections, m.panics, tableAge,
		m.caches, m.transfers, m.notifies, cacheEntries, cacheBytes,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("dns: register metrics: %w", err)
		}
	}
	m.local, m.asked = m.duration.WithLabelValues("table"), m.duration.WithLabelValues("forwarder")
	return m, nil
}

// Transports, as metrics name them.
const (
	overUDP = "udp"
	overTCP = "tcp"
)

// series is one time series of the counter of queries.
type series struct {
	zone  string
	kind  uint16
	rcode int
}

// counters counts for one worker. The path of a query adds to a number of its
// own; flush brings the numbers into the metrics, once a batch. Types and
// rcodes are folded first: clients choose them.
type counters struct {
	metrics   *metrics
	transport string
	known     map[series]*pending
	last      *pending // what was counted last: often the same
	dirty     []*pending
}

// pending is what a series has counted since the last flush.
type pending struct {
	series
	counter prometheus.Counter
	n       int
}

func newCounters(m *metrics, transport string) *counters {
	return &counters{metrics: m, transport: transport, known: map[series]*pending{}}
}

func (c *counters) count(zone string, kind uint16, rcode int) {
	s := series{zone, kind, rcode}
	if c.last == nil || c.last.series != s {
		c.last = c.find(s)
	}
	if c.last.n++; c.last.n == 1 {
		c.dirty = append(c.dirty, c.last)
	}
}

func (c *counters) find(s series) *pending {
	if typeLabel(s.kind) == otherType {
		s.kind = 0
	}
	p, ok := c.known[s]
	if !ok {
		p = &pending{series: s, counter: c.metrics.queries.WithLabelValues(s.zone, typeLabel(s.kind), dns.RcodeToString[s.rcode], c.transport)}
		c.known[s] = p
	}
	return p
}

func (c *counters) flush() {
	for _, p := range c.dirty {
		p.counter.Add(float64(p.n))
		p.n = 0
	}
	c.dirty = c.dirty[:0]
}

const otherType = "other"

// typeLabel names the types that are worth a series of their own.
func typeLabel(kind uint16) string {
	switch kind {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypePTR, dns.TypeSOA, dns.TypeNS,
		dns.TypeCNAME, dns.TypeMX, dns.TypeANY, dns.TypeHTTPS, dns.TypeDS, dns.TypeDNSKEY:
		return dns.TypeToString[kind]
	}
	return otherType
}

package dns

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"holdfast/cluster"
)

// Section is the top-level key of the cluster file that ValidateSection reads.
const Section = "dns"

// Port is where DNS is served (RFC 1035 §4.2).
const Port = 53

// Bounds and defaults of the section.
const (
	maxTTL            = time.Hour
	defaultZoneTTL    = 5 * time.Minute
	minForwardTimeout = 100 * time.Millisecond
	maxForwardTimeout = 10 * time.Second
	// Less than the 5 s that a stub resolver waits by default
	// (resolv.conf(5)), so that the second forwarder's answer still counts.
	defaultForwardTimeout = 2 * time.Second
	maxForwarders         = 8 // of one domain
	defaultRateLimit      = 100
	maxRateLimit          = 1_000_000
	maxQueryLog           = 1_000_000
)

// section is the `dns:` section as it stands in the file.
type section struct {
	Listen         []string                  `yaml:"listen"`
	TTL            time.Duration             `yaml:"ttl"`
	NegativeTTL    time.Duration             `yaml:"negative_ttl"`
	ZoneTTL        time.Duration             `yaml:"zone_ttl"`
	OnlyPassing    bool                      `yaml:"only_passing"`
	NeverEmpty     bool                      `yaml:"never_empty"`
	OwnFirst       bool                      `yaml:"own_first"`
	Services       map[string]serviceSection `yaml:"services"`
	Forward        map[string][]string       `yaml:"forward"`
	ForwardTimeout time.Duration             `yaml:"forward_timeout"`
	Cache          cacheSection              `yaml:"cache"`
	Records        []string                  `yaml:"records"`
	Zones          []string                  `yaml:"zones"`
	Transfer       transferSection           `yaml:"transfer"`
	RateLimit      int                       `yaml:"rate_limit"`
	AllowRecursion []string                  `yaml:"allow_recursion"`
	AllowExplain   []string                  `yaml:"allow_explain"`
	QueryLog       int                       `yaml:"query_log"`
}

// cacheSection is `dns: cache:`.
type cacheSection struct {
	Megabytes int           `yaml:"megabytes"`
	MaxTTL    time.Duration `yaml:"max_ttl"`
	Stale     time.Duration `yaml:"stale"`
}

// Bounds and defaults of the cache.
const (
	defaultCacheMegabytes = 32
	maxCacheMegabytes     = 4096
	defaultCacheTTL       = 24 * time.Hour
	maxCacheTTL           = 7 * 24 * time.Hour // RFC 8767 §4
	defaultCacheStale     = 3 * 24 * time.Hour // RFC 8767 §5
	maxCacheStale         = 30 * 24 * time.Hour
)

func (d *decoder) cache(raw cacheSection) cacheSettings {
	if raw.Megabytes < 0 || raw.Megabytes > maxCacheMegabytes {
		d.errorf("cache.megabytes", "%d is out of range: 0 (no cache) to %d", raw.Megabytes, maxCacheMegabytes)
	}
	if raw.MaxTTL < time.Second || raw.MaxTTL > maxCacheTTL || raw.MaxTTL%time.Second != 0 {
		d.errorf("cache.max_ttl", "%v is out of range: whole seconds, 1s to %v", raw.MaxTTL, maxCacheTTL)
	}
	if raw.Stale < 0 || raw.Stale > maxCacheStale {
		d.errorf("cache.stale", "%v is out of range: 0s (off) to %v", raw.Stale, maxCacheStale)
	}
	return cacheSettings{bytes: raw.Megabytes << 20, maxTTL: raw.MaxTTL, stale: raw.Stale}
}

// settings is the section, understood.
type settings struct {
	listen         []netip.AddrPort          // empty: all addresses
	ttl            time.Duration             // of names in the virtual zone
	negativeTTL    time.Duration             // of their absence
	zoneTTL        time.Duration             // of the cluster's own and the reverse zones
	onlyPassing    bool                      // a warning is not healthy enough
	neverEmpty     bool                      // without a healthy instance, the last ones are answered
	ownFirst       bool                      // who runs an instance is given it first
	rules          map[string]serviceSection // by folded name of the service
	forward        map[name][]netip.AddrPort
	forwardTimeout time.Duration
	cache          cacheSettings
	statics        []static // records of the file
	zones          []name   // that hold static records alone
	transfer       transferSettings
	rateLimit      int            // equal answers per second to one network outside; 0: any number
	recursion      []netip.Prefix // nil: the cluster's networks
	explain        []netip.Prefix // nil: those of recursion
	queryLog       int            // one of so many queries is logged; 0: none
}

// ValidateSection checks the `dns:` section of a cluster file; a file without
// one is in order. The error is cluster.Errors.
func ValidateSection(file *cluster.File, s cluster.Section) error {
	_, err := decode(file, s)
	return err
}

// decode reads the section with its defaults; it reports all mistakes at once.
func decode(file *cluster.File, s cluster.Section) (settings, error) {
	raw := section{ZoneTTL: defaultZoneTTL, OnlyPassing: true, ForwardTimeout: defaultForwardTimeout,
		RateLimit: defaultRateLimit, Cache: cacheSection{Megabytes: defaultCacheMegabytes, MaxTTL: defaultCacheTTL, Stale: defaultCacheStale}}
	if !s.IsZero() {
		if err := s.Decode(&raw); err != nil {
			return settings{}, err
		}
	}
	d := decoder{file: file, section: s}
	set := settings{
		ttl:            d.ttl("ttl", raw.TTL),
		negativeTTL:    d.ttl("negative_ttl", raw.NegativeTTL),
		zoneTTL:        d.ttl("zone_ttl", raw.ZoneTTL),
		onlyPassing:    raw.OnlyPassing,
		neverEmpty:     raw.NeverEmpty,
		ownFirst:       raw.OwnFirst,
		rules:          d.serviceRules(raw.Services),
		forwardTimeout: raw.ForwardTimeout,
		forward:        d.forward(raw.Forward),
		cache:          d.cache(raw.Cache),
		rateLimit:      raw.RateLimit,
		queryLog:       raw.QueryLog,
		transfer:       d.transfer(raw.Transfer),
		statics:        d.statics(raw.Records, seconds(max(0, raw.ZoneTTL))),
		zones:          d.zones(raw.Zones),
		recursion:      d.prefixes("allow_recursion", raw.AllowRecursion),
		explain:        d.prefixes("allow_explain", raw.AllowExplain),
		listen:         d.listen(raw.Listen),
	}
	if raw.ForwardTimeout < minForwardTimeout || raw.ForwardTimeout > maxForwardTimeout {
		d.errorf("forward_timeout", "%v is out of range: %v to %v", raw.ForwardTimeout, minForwardTimeout, maxForwardTimeout)
	}
	if raw.RateLimit < 0 || raw.RateLimit > maxRateLimit {
		d.errorf("rate_limit", "%d is out of range: 0 (none) to %d answers per second", raw.RateLimit, maxRateLimit)
	}
	if raw.QueryLog < 0 || raw.QueryLog > maxQueryLog {
		d.errorf("query_log", "%d is out of range: 0 (none), 1 (each query) to %d (one of so many)", raw.QueryLog, maxQueryLog)
	}
	if len(d.errs) > 0 {
		return settings{}, d.errs
	}
	return set, nil
}

// decoder collects the mistakes of a section.
type decoder struct {
	file    *cluster.File
	section cluster.Section
	errs    cluster.Errors
}

func (d *decoder) errorf(key, format string, args ...any) {
	d.errs = append(d.errs, d.section.Errorf(key, format, args...))
}

func (d *decoder) ttl(key string, v time.Duration) time.Duration {
	if v < 0 || v > maxTTL || v%time.Second != 0 {
		d.errorf(key, "%v is no TTL: whole seconds, 0s to %v", v, maxTTL)
	}
	return v
}

func (d *decoder) listen(raw []string) []netip.AddrPort {
	list, mistakes := d.section.AddrPorts("listen", raw, Port)
	d.errs = append(d.errs, mistakes...)
	return list
}

// prefixes tells a list that is empty (nobody) from one that is not there.
func (d *decoder) prefixes(key string, raw []string) []netip.Prefix {
	if raw == nil {
		return nil
	}
	list, mistakes := d.section.Prefixes(key, raw)
	d.errs = append(d.errs, mistakes...)
	return append([]netip.Prefix{}, list...)
}

func (d *decoder) forward(raw map[string][]string) map[name][]netip.AddrPort {
	out := map[name][]netip.AddrPort{}
	for _, domain := range sortedKeys(raw) {
		at := fmt.Sprintf("forward[%q]", domain)
		n, err := parseName(domain)
		switch {
		case err != nil || strings.ContainsAny(domain, " \t:/\\"):
			d.errorf(at, "%q is no domain; write a name such as example.com, or \".\" for all others", domain)
		case out[n] != nil:
			d.errorf(at, "%s stands here twice", n)
		default:
			out[n] = d.forwarders(at, raw[domain])
		}
	}
	return out
}

func (d *decoder) forwarders(at string, raw []string) []netip.AddrPort {
	if len(raw) == 0 || len(raw) > maxForwarders {
		d.errorf(at, "%d forwarders, not 1 to %d", len(raw), maxForwarders)
	}
	list := []netip.AddrPort{}
	for i, s := range raw {
		at := fmt.Sprintf("%s[%d]", at, i)
		addr, err := cluster.ParseAddrPort(s, Port)
		switch {
		case err != nil:
			d.errorf(at, "%v", err)
		case addr.Addr().IsUnspecified() || addr.Addr().IsMulticast():
			d.errorf(at, "%v is no server's address", addr.Addr())
		case slices.Contains(list, addr):
			d.errorf(at, "%v stands here twice", addr)
		case d.ours(addr):
			d.errorf(at, "%v is this cluster's own DNS server: the question would go round in circles", addr)
		default:
			list = append(list, addr)
		}
	}
	return list
}

// ours tells whether a forwarder is where the cluster's own servers answer.
func (d *decoder) ours(addr netip.AddrPort) bool {
	if addr.Port() != Port {
		return false
	}
	if addr.Addr() == netip.IPv6Loopback() || addr.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		return true
	}
	for _, machine := range servingNodes(d.file) {
		for _, a := range machine.Addresses {
			if a == addr.Addr() {
				return true
			}
		}
	}
	return slices.ContainsFunc(d.file.VIPs, func(v cluster.VIP) bool {
		return v.Address == addr.Addr() && slices.Contains(v.Track, "dns")
	})
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

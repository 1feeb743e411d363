package ntpproxy

import (
	"net/netip"
	"time"

	"holdfast/cluster"
	"holdfast/internal/ntp"
)

// Section is the top-level key of the cluster file that ValidateSection reads.
const Section = "ntp"

// Bounds and defaults of the section.
const (
	defaultInterval = time.Second
	minInterval     = time.Millisecond
	maxInterval     = time.Hour
	// An iburst is 4 to 8 requests; a client that restarts makes several.
	defaultBurst   = 16
	maxBurst       = 1000
	defaultStratum = 4
	// More than a healthy pair of nodes on one network ever differs by, less
	// than what breaks Kerberos, make and logs.
	defaultAgree = 10 * time.Millisecond
	minAgree     = 100 * time.Microsecond
	maxAgree     = 10 * time.Second
)

// section is the `ntp:` section as it stands in the file.
type section struct {
	Listen  []string      `yaml:"listen"`
	Allow   []string      `yaml:"allow"`
	Deny    []string      `yaml:"deny"`
	Limit   limitSection  `yaml:"limit"`
	Stratum int           `yaml:"stratum"`
	Agree   time.Duration `yaml:"agree"`
}

type limitSection struct {
	Interval time.Duration `yaml:"interval"`
	Burst    int           `yaml:"burst"`
}

// settings is the section, understood.
type settings struct {
	listen  []netip.AddrPort // empty: all addresses
	access  access
	limit   limitSection
	stratum uint8         // of a clock that only the kernel vouches for
	agree   time.Duration // how far the nodes' clocks may be apart
	peers   []peer
}

// ValidateSection checks the `ntp:` section of a cluster file; a file without
// one is in order. The error is cluster.Errors.
func ValidateSection(file *cluster.File, s cluster.Section) error {
	_, err := decode(file, s)
	return err
}

// decode reads the section with its defaults; it reports all mistakes at once.
func decode(file *cluster.File, s cluster.Section) (settings, error) {
	raw := section{
		Limit:   limitSection{Interval: defaultInterval, Burst: defaultBurst},
		Stratum: defaultStratum, Agree: defaultAgree,
	}
	if !s.IsZero() {
		if err := s.Decode(&raw); err != nil {
			return settings{}, err
		}
	}
	d := decoder{section: s}
	set := settings{
		listen:  d.listen(raw.Listen),
		access:  access{own: members(file), allow: d.prefixes("allow", raw.Allow), deny: d.prefixes("deny", raw.Deny)},
		limit:   raw.Limit,
		stratum: uint8(raw.Stratum),
		agree:   raw.Agree,
	}
	if raw.Limit.Interval < minInterval || raw.Limit.Interval > maxInterval {
		d.errorf("limit.interval", "%v is out of range: %v to %v", raw.Limit.Interval, minInterval, maxInterval)
	}
	if raw.Limit.Burst < 1 || raw.Limit.Burst > maxBurst {
		d.errorf("limit.burst", "%d is out of range: 1 to %d", raw.Limit.Burst, maxBurst)
	}
	if raw.Stratum < 2 || raw.Stratum > ntp.MaxStratum {
		d.errorf("stratum", "%d is out of range: 2 to %d", raw.Stratum, ntp.MaxStratum)
	}
	if raw.Agree < minAgree || raw.Agree > maxAgree {
		d.errorf("agree", "%v is out of range: %v to %v", raw.Agree, minAgree, maxAgree)
	}
	if len(d.errs) > 0 {
		return settings{}, d.errs
	}
	return set, nil
}

// members are the networks whose machines are the cluster's.
func members(file *cluster.File) []netip.Prefix {
	list := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for _, n := range file.Networks {
		list = append(list, n.Prefix)
	}
	return list
}

// decoder collects the mistakes of a section.
type decoder struct {
	section cluster.Section
	errs    cluster.Errors
}

func (d *decoder) errorf(key, format string, args ...any) {
	d.errs = append(d.errs, d.section.Errorf(key, format, args...))
}

func (d *decoder) listen(raw []string) []netip.AddrPort {
	list, mistakes := d.section.AddrPorts("listen", raw, ntp.Port)
	d.errs = append(d.errs, mistakes...)
	return list
}

func (d *decoder) prefixes(key string, raw []string) []netip.Prefix {
	list, mistakes := d.section.Prefixes(key, raw)
	d.errs = append(d.errs, mistakes...)
	return list
}

package ntpproxy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
	// Of the sources, as everywhere (RFC 5905 §7.2): log2 seconds.
	defaultMinPoll, defaultMaxPoll = 6, 10
	leastPoll, mostPoll            = -4, 17
	maxSources                     = 16
	defaultStep                    = 100 * time.Millisecond
	minStep, maxStep               = time.Millisecond, time.Hour
	// Of an offset, each second: see DESIGN.md.
	defaultSlew      = 10 * time.Millisecond
	minSlew, maxSlew = 500 * time.Microsecond, 100 * time.Millisecond
	// Of the clock's error without sources, each second.
	defaultGrowth        = time.Microsecond
	minGrowth, maxGrowth = time.Nanosecond, 500 * time.Microsecond
	// Below whoever has a source, and with room for those who follow.
	defaultOrphan           = 10
	leastOrphan, mostOrphan = 5, 13
)

// Who keeps the clock.
const (
	keepAuto       = "auto"       // we do, if there are sources and nobody else does
	keepServe      = "serve"      // another daemon
	keepDiscipline = "discipline" // we do, and that somebody else does too is an error
)

// section is the `ntp:` section as it stands in the file.
type section struct {
	Listen  []string      `yaml:"listen"`
	Allow   []string      `yaml:"allow"`
	Deny    []string      `yaml:"deny"`
	Limit   limitSection  `yaml:"limit"`
	Stratum int           `yaml:"stratum"`
	Agree   time.Duration `yaml:"agree"`

	Keep     string        `yaml:"keep"`
	Sources  []string      `yaml:"sources"`
	Agreeing int           `yaml:"agreeing"`
	Step     time.Duration `yaml:"step"`
	Slew     time.Duration `yaml:"slew"`
	Poll     pollSection   `yaml:"poll"`
	Growth   time.Duration `yaml:"growth"`
	Orphan   *int          `yaml:"orphan"` // nil: not said
	Hold     []string      `yaml:"hold"`
	Leap     leapSection   `yaml:"leap"`
}

type pollSection struct {
	Min int `yaml:"min"`
	Max int `yaml:"max"`
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

	keep             string
	sources          []string // host:port
	agreeing         int
	step             time.Duration
	slew             float64 // of an offset, in seconds per second
	minPoll, maxPoll int
	growth           float64         // of the error without sources, in seconds per second
	orphan           uint8           // stratum
	orphanSaid       bool            // it stands in the file: also without sources, or other nodes
	nodes            []ntp.Reference // how packets name the service nodes
	self             []ntp.Reference // how packets name this node
	names            map[netip.Addr]string
	hold             []string // services beside which the clock is not stepped
	leap             leapSettings
}

// own tells whether a reference names this node.
func (s *settings) own(r ntp.Reference) bool { return slices.Contains(s.self, r) }

// referencesOf are the references that name a node.
func referencesOf(file *cluster.File, node string) (list []ntp.Reference) {
	for _, n := range file.Nodes {
		if n.Name != node {
			continue
		}
		for _, a := range n.Addresses {
			list = append(list, referenceOf(a))
		}
	}
	return list
}

// namesOf are the cluster file's names of addresses.
func namesOf(file *cluster.File) map[netip.Addr]string {
	names := map[netip.Addr]string{}
	for _, n := range file.Nodes {
		for _, a := range n.Addresses {
			names[a] = n.Name
		}
	}
	return names
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
		Keep: keepAuto, Agreeing: 1, Step: defaultStep, Slew: defaultSlew, Poll: pollSection{defaultMinPoll, defaultMaxPoll}, Growth: defaultGrowth, Hold: defaultHold(),
	}
	if !s.IsZero() {
		if err := s.Decode(&raw); err != nil {
			return settings{}, err
		}
	}
	orphanSaid := raw.Orphan != nil
	if !orphanSaid {
		raw.Orphan = new(defaultOrphan)
	}
	d := decoder{section: s}
	set := settings{
		listen:  d.listen(raw.Listen),
		access:  access{own: members(file), allow: d.prefixes("allow", raw.Allow), deny: d.prefixes("deny", raw.Deny)},
		limit:   raw.Limit,
		stratum: uint8(raw.Stratum),
		agree:   raw.Agree,
		keep:    raw.Keep, agreeing: raw.Agreeing, step: raw.Step, slew: raw.Slew.Seconds(), minPoll: raw.Poll.Min, maxPoll: raw.Poll.Max,
		sources: d.sources(raw.Sources),
		growth:  raw.Growth.Seconds(), orphan: uint8(*raw.Orphan), orphanSaid: orphanSaid, hold: raw.Hold,
	}
	d.discipline(raw, orphanSaid)
	set.leap = d.leap(raw.Leap)
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

// sources are host:port of the sources.
func (d *decoder) sources(raw []string) (list []string) {
	if len(raw) > maxSources {
		d.errorf("sources", "%d are too many: at most %d", len(raw), maxSources)
	}
	for i, text := range raw {
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			host, port = strings.Trim(text, "[]"), strconv.Itoa(ntp.Port)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || strings.ContainsAny(host, " /@") {
			d.errorf(fmt.Sprintf("sources[%d]", i), "%q is no HOST or HOST:PORT, such as ntp.example.org", text)
			continue
		}
		list = append(list, net.JoinHostPort(host, port))
	}
	return list
}

// discipline checks what is said of keeping the clock.
func (d *decoder) discipline(raw section, orphanSaid bool) {
	if raw.Keep != keepAuto && raw.Keep != keepServe && raw.Keep != keepDiscipline {
		d.errorf("keep", "%q is none of %s, %s, %s", raw.Keep, keepAuto, keepServe, keepDiscipline)
	}
	if raw.Keep == keepDiscipline && len(raw.Sources) == 0 && !orphanSaid {
		d.errorf("keep", "%s needs sources, or orphan for a cluster that is to have none", keepDiscipline)
	}
	if raw.Agreeing < 1 || raw.Agreeing > max(1, len(raw.Sources)) {
		d.errorf("agreeing", "%d is out of range: 1 to the number of sources, %d", raw.Agreeing, len(raw.Sources))
	}
	if raw.Step < minStep || raw.Step > maxStep {
		d.errorf("step", "%v is out of range: %v to %v", raw.Step, minStep, maxStep)
	}
	if raw.Slew < minSlew || raw.Slew > maxSlew {
		d.errorf("slew", "%v is out of range: %v to %v, each second", raw.Slew, minSlew, maxSlew)
	}
	for i, name := range raw.Hold {
		if name == "" || strings.ContainsAny(name, " \t") {
			d.errorf(fmt.Sprintf("hold[%d]", i), "%q is no service's name, such as slurmctld", name)
		}
	}
	if raw.Growth < minGrowth || raw.Growth > maxGrowth {
		d.errorf("growth", "%v is out of range: %v to %v, each second", raw.Growth, minGrowth, maxGrowth)
	}
	if orphan := *raw.Orphan; orphan < leastOrphan || orphan > mostOrphan {
		d.errorf("orphan", "%d is out of range: %d to %d, a stratum", orphan, leastOrphan, mostOrphan)
	}
	if raw.Poll.Min < leastPoll || raw.Poll.Min > mostPoll {
		d.errorf("poll.min", "%d is out of range: %d to %d, in log2 seconds", raw.Poll.Min, leastPoll, mostPoll)
	}
	if raw.Poll.Max < raw.Poll.Min || raw.Poll.Max > mostPoll {
		d.errorf("poll.max", "%d is out of range: poll.min, %d, to %d, in log2 seconds", raw.Poll.Max, raw.Poll.Min, mostPoll)
	}
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

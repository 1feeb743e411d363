package logrelay

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"

	"holdfast/cluster"
)

// Section is the top-level key of the cluster file that ValidateSection reads.
const Section = "logs"

// Ports of the inputs.
const (
	relpPort      = 20514
	syslogPort    = 514
	syslogTLSPort = 6514 // RFC 5425 §4.1
)

// Bounds and defaults of the section.
const (
	defaultDir       = "/var/log/holdfast/hosts"
	defaultRotateMiB = 64
	maxRotateMiB     = 1 << 20
	defaultEvery     = 24 * time.Hour
	minEvery         = time.Minute
	maxEvery         = 366 * 24 * time.Hour
	defaultKeep      = 30
	maxKeep          = 10_000
	defaultFree      = 10
	defaultHosts     = 5000
	defaultReplayMiB = 1024
	maxHosts         = 100_000
	maxReplayMiB     = 1 << 20
	maxLimitLines    = 1_000_000_000
	minLimitEvery    = time.Second
	maxLimitEvery    = 24 * time.Hour
	defaultLimitPer  = "host"
)

// section is the `logs:` section as it stands in the file.
type section struct {
	RELP      []string                  `yaml:"relp"`
	RELPTLS   []string                  `yaml:"relp_tls"`
	UDP       []string                  `yaml:"udp"`
	TCP       []string                  `yaml:"tcp"`
	TLS       []string                  `yaml:"tls"`
	Unix      []string                  `yaml:"unix"`
	Journald  bool                      `yaml:"journald"`
	Relays    []string                  `yaml:"relays"`
	Hosts     int                       `yaml:"hosts"`
	ReplayMiB int                       `yaml:"replay_mib"`
	Replicas  int                       `yaml:"replicas"`
	Policy    string                    `yaml:"replica_policy"`
	Replica   []string                  `yaml:"replica"`
	Files     filesSection              `yaml:"files"`
	Forward   map[string]forwardSection `yaml:"forward"`
	Rules     []ruleSection             `yaml:"rules"`
	Redact    []string                  `yaml:"redact"`
}

type filesSection struct {
	Dir       string        `yaml:"dir"`
	Path      string        `yaml:"path"`
	Format    string        `yaml:"format"`
	Apps      int           `yaml:"apps"`
	RotateMiB int           `yaml:"rotate_mib"`
	Every     time.Duration `yaml:"rotate_every"`
	Keep      int           `yaml:"keep"`
	Free      int           `yaml:"free_percent"`
	Owner     string        `yaml:"owner"`
	Group     string        `yaml:"group"`
	Mode      string        `yaml:"mode"`
}

type ruleSection struct {
	If    string        `yaml:"if"`
	Drop  bool          `yaml:"drop"`
	Set   *setSection   `yaml:"set"`
	Limit *limitSection `yaml:"limit"`
	To    []string      `yaml:"to"`
}

// setSection has expressions.
type setSection struct {
	Text     string `yaml:"text"`
	Tag      string `yaml:"tag"`
	Host     string `yaml:"host"`
	Severity string `yaml:"severity"`
}

type limitSection struct {
	Lines int           `yaml:"lines"`
	Every time.Duration `yaml:"every"`
	Per   string        `yaml:"per"`
}

// settings is the section, understood.
type settings struct {
	listen   map[uint8][]netip.AddrPort
	unix     []string // paths of sockets
	journald bool
	relays   []netip.Prefix
	hosts    int
	replay   int64
	replicas int  // nodes that have a line before it is acknowledged
	wait     bool // and rather not acknowledged than on fewer
	dir      string
	path     *pathTemplate
	format   lineFormat
	apps     int // of a host that have files of their own
	rotate   rotateConfig
	owner    ownership
	forward  []target
	rules    []rule
	redact   []string
}

// ValidateSection checks the `logs:` section of a cluster file; a file without
// one is in order. The error is cluster.Errors.
func ValidateSection(_ *cluster.File, s cluster.Section) error {
	_, err := decode(s)
	return err
}

// decode reads the section with its defaults; it reports all mistakes at once.
func decode(s cluster.Section) (settings, error) {
	raw := section{Hosts: defaultHosts, ReplayMiB: defaultReplayMiB, Replicas: 1, Policy: policyDegrade, Files: filesSection{
		Dir: defaultDir, Path: defaultPath, Format: defaultFormat, Apps: defaultApps, RotateMiB: defaultRotateMiB, Every: defaultEvery, Keep: defaultKeep, Free: defaultFree,
	}}
	if !s.IsZero() {
		if err := s.Decode(&raw); err != nil {
			return settings{}, err
		}
	}
	d := decoder{section: s}
	set := settings{listen: map[uint8][]netip.AddrPort{
		viaRELP:    d.listen("relp", raw.RELP, relpPort),
		viaRELPTLS: d.listen("relp_tls", raw.RELPTLS, relpPort),
		viaUDP:     d.listen("udp", raw.UDP, syslogPort),
		viaTCP:     d.listen("tcp", raw.TCP, syslogPort),
		viaTLS:     d.listen("tls", raw.TLS, syslogTLSPort),
	}}
	if raw.RELP == nil {
		set.listen[viaRELP] = []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Unspecified(), relpPort)}
	}
	var mistakes cluster.Errors
	set.relays, mistakes = s.Prefixes("relays", raw.Relays)
	d.errs = append(d.errs, mistakes...)
	set.unix, set.journald = raw.Unix, raw.Journald
	for i, path := range raw.Unix {
		if !strings.HasPrefix(path, "/") {
			d.errorf("unix["+itoa(i)+"]", "%q is no absolute path", path)
		}
	}
	set.hosts = d.bounded("hosts", raw.Hosts, 1, maxHosts)
	set.replay = int64(d.bounded("replay_mib", raw.ReplayMiB, 0, maxReplayMiB)) << 20
	d.replicas(raw, &set)
	d.files(raw.Files, &set)
	d.forward(raw.Forward, &set)
	d.rules(raw, &set)
	if len(d.errs) > 0 {
		return settings{}, d.errs
	}
	return set, nil
}

// decoder collects the mistakes of a section.
type decoder struct {
	section cluster.Section
	errs    cluster.Errors
}

func (d *decoder) errorf(key, format string, args ...any) {
	d.errs = append(d.errs, d.section.Errorf(key, format, args...))
}

func (d *decoder) listen(key string, raw []string, port uint16) []netip.AddrPort {
	list, mistakes := d.section.AddrPorts(key, raw, port)
	d.errs = append(d.errs, mistakes...)
	return list
}

func (d *decoder) bounded(key string, value, least, most int) int {
	if value < least || value > most {
		d.errorf(key, "%d is out of range: %d to %d", value, least, most)
	}
	return value
}

// Policies about lines that no other node takes.
const (
	policyDegrade = "degrade"
	policyWait    = "wait"
)

func (d *decoder) replicas(raw section, set *settings) {
	set.replicas = d.bounded("replicas", raw.Replicas, 1, 2)
	if set.wait = raw.Policy == policyWait; !set.wait && raw.Policy != policyDegrade {
		d.errorf("replica_policy", "%q is no policy: want %s or %s", raw.Policy, policyDegrade, policyWait)
	}
	if set.replicas > 1 {
		if raw.Replica == nil {
			raw.Replica = []string{fmt.Sprintf("[::]:%d", replicaPort)}
		}
		set.listen[viaReplica] = d.listen("replica", raw.Replica, replicaPort)
	}
}

func (d *decoder) files(raw filesSection, set *settings) {
	if !strings.HasPrefix(raw.Dir, "/") {
		d.errorf("files.dir", "%q is no absolute path", raw.Dir)
	}
	set.dir, set.owner = raw.Dir, d.owner(raw)
	set.path, set.format = d.path(raw.Path), d.format(raw.Format)
	set.apps = d.bounded("files.apps", raw.Apps, 1, maxApps)
	if set.path != nil && set.path.has[varApp] && set.apps*set.hosts > maxHostApps {
		d.errorf("files.apps", "%d programs of each of %d hosts (logs.hosts) may have files: want %d at most in all", set.apps, set.hosts, maxHostApps)
	}
	set.rotate = rotateConfig{
		bytes: int64(d.bounded("files.rotate_mib", raw.RotateMiB, 1, maxRotateMiB)) << 20,
		every: raw.Every,
		keep:  d.bounded("files.keep", raw.Keep, 1, maxKeep),
		free:  float64(d.bounded("files.free_percent", raw.Free, 0, 90)),
	}
	if raw.Every < minEvery || raw.Every > maxEvery {
		d.errorf("files.rotate_every", "%v is out of range: %v to %v", raw.Every, minEvery, maxEvery)
	}
}

func (d *decoder) rules(raw section, set *settings) {
	for i, r := range raw.Rules {
		key := "rules[" + itoa(i) + "]"
		program, err := compile(r.If)
		if err != nil {
			d.errorf(key+".if", "%v", err)
		}
		for _, to := range r.To {
			if to != "files" && !slices.ContainsFunc(set.forward, func(t target) bool { return t.name == to }) {
				d.errorf(key+".to", "%q is no output: want files or a name below forward", to)
			}
		}
		decoded := rule{program: program, drop: r.Drop, to: r.To, set: d.change(key+".set", r.Set), limit: d.limit(key+".limit", r.Limit)}
		if r.Set != nil && r.Limit != nil || r.Drop && (r.Set != nil || r.Limit != nil) {
			d.errorf(key, "there is more than one of drop, set and limit: write a rule for each")
		}
		set.rules = append(set.rules, decoded)
	}
	for i, text := range raw.Redact {
		if _, err := compileSecret(text); err != nil {
			d.errorf("redact["+itoa(i)+"]", "%v", err)
		}
	}
	set.redact = raw.Redact
}

// change reads what a rule makes of a line.
func (d *decoder) change(key string, raw *setSection) *change {
	if raw == nil {
		return nil
	}
	if *raw == (setSection{}) {
		d.errorf(key, "nothing is set: want text, tag, host or severity")
	}
	if n, err := strconv.Atoi(raw.Severity); err == nil && (n < 0 || n > 7) {
		d.errorf(key+".severity", "%d is out of range: 0 (emerg) to 7 (debug)", n)
	}
	return &change{
		text: d.expression(key+".text", raw.Text, reflect.String), tag: d.expression(key+".tag", raw.Tag, reflect.String),
		host: d.expression(key+".host", raw.Host, reflect.String), severity: d.expression(key+".severity", raw.Severity, reflect.Int),
	}
}

func (d *decoder) limit(key string, raw *limitSection) *limit {
	if raw == nil {
		return nil
	}
	if raw.Every < minLimitEvery || raw.Every > maxLimitEvery {
		d.errorf(key+".every", "%v is out of range: %v to %v", raw.Every, minLimitEvery, maxLimitEvery)
	}
	return &limit{
		per:   d.expression(key+".per", cmp.Or(raw.Per, defaultLimitPer), reflect.String),
		lines: d.bounded(key+".lines", raw.Lines, 1, maxLimitLines), every: raw.Every,
	}
}

// expression reads one; nil where there is none.
func (d *decoder) expression(key, text string, kind reflect.Kind) *vm.Program {
	if text == "" {
		return nil
	}
	program, err := compileAs(text, expr.AsKind(kind))
	if err != nil {
		d.errorf(key, "%v", err)
	}
	return program
}

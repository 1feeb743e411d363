// Package check probes services: TCP, SSH, HTTP(S), DNS, NTP, script, process, TTL. A probe
// gives a result; a Machine makes a state out of results (rise, fall, TTL);
// a Runner repeats probes and reports what changed.
package check

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/state"
)

// What a definition may say.
const (
	DefaultInterval = 10 * time.Second
	DefaultTimeout  = 10 * time.Second // or Interval, when that is less

	MinInterval = 100 * time.Millisecond
	MaxInterval = 24 * time.Hour
	MinTimeout  = 10 * time.Millisecond
	MaxTimeout  = time.Hour
	MinTTL      = 100 * time.Millisecond
	MaxTTL      = 30 * 24 * time.Hour
	MaxRise     = 100
	MaxFall     = 100
	// MinDeregisterAfter is what a shorter DeregisterAfter is taken for, as
	// Consul does.
	MinDeregisterAfter = time.Minute

	maxIDLength   = 256
	maxBodyLength = 64 << 10
)

// Definition says how a check is made. Exactly one of TCP, SSH, HTTP, DNS, NTP, Script,
// Process and TTL is set.
type Definition struct {
	ID        string // unique on the node; "service:<service ID>" unless said
	Name      string
	Notes     string
	ServiceID string // "" speaks of the node

	TCP     string // host:port
	SSH     string // host:port
	NTP     string // host:port
	HTTP    string // URL, http or https
	Method  string // of HTTP; GET unless said
	Header  map[string][]string
	Body    string
	TLS     TLS
	DNS     string   // address:port of the server that is asked
	Query   string   // of DNS: "example.com AAAA"; ". NS" unless said
	Script  []string // argv; never a shell
	Process string   // comm name of a process that must be alive
	TTL     time.Duration

	Interval time.Duration // 10 s unless said; at least 100 ms
	Timeout  time.Duration // at most Interval unless said: min(Interval, 10 s)
	Rise     int           // successes in a row before passing; 1 unless said
	Fall     int           // failures in a row before critical; 1 unless said

	// Via is another way to the same place; of tcp, ssh and http.
	Via Via

	Initial         state.Status  // Critical unless said
	DeregisterAfter time.Duration // 0 never
}

// TLS says how an HTTPS probe trusts its peer.
type TLS struct {
	ServerName string
	CAFile     string
	SkipVerify bool
}

// Result is what one probe saw.
type Result struct {
	Status state.Status
	Output string
	At     time.Time
	Took   time.Duration
}

// Type is the kind of the check as the catalog names it: "tcp", "ssh", "http",
// "dns", "ntp", "script", "process", "ttl"; "" when none or several are set.
func (d Definition) Type() string {
	kinds := [...]struct {
		name string
		set  bool
	}{
		{"tcp", d.TCP != ""},
		{"ssh", d.SSH != ""},
		{"http", d.HTTP != ""},
		{"dns", d.DNS != ""},
		{"ntp", d.NTP != ""},
		{"script", len(d.Script) > 0},
		{"process", d.Process != ""},
		{"ttl", d.TTL != 0},
	}
	found := ""
	for _, kind := range kinds {
		switch {
		case kind.set && found != "":
			return ""
		case kind.set:
			found = kind.name
		}
	}
	return found
}

// WithDefaults fills in what was not said.
func (d Definition) WithDefaults() Definition {
	if d.ID == "" && d.ServiceID != "" {
		d.ID = "service:" + d.ServiceID
	}
	if d.Name == "" {
		d.Name = d.ID
	}
	if d.HTTP != "" && d.Method == "" {
		d.Method = "GET"
	}
	if d.DNS != "" && d.Query == "" {
		d.Query = defaultQuery
	}
	if d.Interval == 0 && d.TTL == 0 {
		d.Interval = DefaultInterval
	}
	if d.Timeout == 0 && d.TTL == 0 {
		d.Timeout = min(d.Interval, DefaultTimeout)
	}
	d.Rise, d.Fall = max(d.Rise, 1), max(d.Fall, 1)
	if d.Initial == "" {
		d.Initial = state.Critical
	}
	if d.DeregisterAfter > 0 {
		d.DeregisterAfter = max(d.DeregisterAfter, MinDeregisterAfter)
	}
	return d
}

// Equal tells whether two definitions make the same check.
func (d Definition) Equal(other Definition) bool { return reflect.DeepEqual(d, other) }

// Mistake is one thing that is wrong with a definition.
type Mistake struct {
	Key     string // of the definition: "http", "interval" ...
	Problem string // what is wrong, and what would be right
}

// Error gives "interval: 1ms is not within 100ms to 24h0m0s".
func (m *Mistake) Error() string { return m.Key + ": " + m.Problem }

// Validate says everything that is wrong with the definition: *Mistakes,
// joined. What is not said is not wrong: see WithDefaults.
func (d Definition) Validate() error {
	var wrong mistakes
	d.validateIdentity(&wrong)
	d.validateKind(&wrong)
	wrong.duration("interval", d.Interval, MinInterval, MaxInterval)
	wrong.duration("timeout", d.Timeout, MinTimeout, MaxTimeout)
	wrong.count("rise", d.Rise, MaxRise)
	wrong.count("fall", d.Fall, MaxFall)
	switch d.Initial {
	case "", state.Passing, state.Warning, state.Critical:
	default:
		wrong.add("initial", "%q is no state; write passing, warning or critical", d.Initial)
	}
	if d.DeregisterAfter < 0 {
		wrong.add("deregister_after", "%s is negative", d.DeregisterAfter)
	}
	return errors.Join(wrong...)
}

func (d Definition) validateIdentity(wrong *mistakes) {
	switch {
	case d.ID == "" && d.ServiceID == "":
		wrong.add("id", "a check that belongs to no service needs one")
	case len(d.ID) > maxIDLength:
		wrong.add("id", "has %d bytes, more than %d", len(d.ID), maxIDLength)
	case strings.ContainsFunc(d.ID, isControl):
		wrong.add("id", "%q has control characters", d.ID)
	case d.ID == state.SerfHealth:
		wrong.add("id", "%q is kept by the cluster itself", d.ID)
	}
}

func (d Definition) validateKind(wrong *mistakes) {
	switch d.Type() {
	case "":
		wrong.add("check", "needs exactly one of http, tcp, ssh, dns, ntp, script, process and ttl")
		return
	case "tcp":
		if err := checkHostPort(d.TCP); err != nil {
			wrong.add("tcp", "%q %s", d.TCP, err)
		}
	case "ssh":
		if err := checkHostPort(d.SSH); err != nil {
			wrong.add("ssh", "%q %s", d.SSH, err)
		}
	case "ntp":
		if err := checkHostPort(d.NTP); err != nil {
			wrong.add("ntp", "%q %s", d.NTP, err)
		}
	case "http":
		d.validateHTTP(wrong)
	case "dns":
		d.validateDNS(wrong)
	case "script":
		if !filepath.IsAbs(d.Script[0]) {
			wrong.add("script", "%q is not an absolute path", d.Script[0])
		}
	case "process":
		if strings.ContainsFunc(d.Process, isControl) || strings.Contains(d.Process, "/") {
			wrong.add("process", "%q is not the name of a program; write it without its directory", d.Process)
		}
	case "ttl":
		wrong.duration("ttl", d.TTL, MinTTL, MaxTTL)
		if d.Interval != 0 || d.Timeout != 0 || d.Rise > 1 || d.Fall > 1 {
			wrong.add("ttl", "nothing is probed, so interval, timeout, rise and fall mean nothing")
		}
	}
	if d.Type() != "dns" && d.Query != "" {
		wrong.add("query", "belongs to a dns check")
	}
	if d.Type() != "http" && (d.Method != "" || len(d.Header) > 0 || d.Body != "" || d.TLS != (TLS{})) {
		wrong.add("check", "method, header, body and TLS settings belong to an http check")
	}
}

func (d Definition) validateDNS(wrong *mistakes) {
	if err := checkDNSServer(d.DNS); err != nil {
		wrong.add("dns", "%v", err)
	}
	if d.Query == "" {
		return
	}
	if _, _, err := question(d.Query); err != nil {
		wrong.add("query", "%v", err)
	}
}

func (d Definition) validateHTTP(wrong *mistakes) {
	u, err := url.Parse(d.HTTP)
	switch {
	case err != nil:
		wrong.add("http", "is not a URL") // the error would show a password
	case u.Scheme != "http" && u.Scheme != "https":
		wrong.add("http", "%q does not begin with http:// or https://", u.Redacted())
	case u.Host == "" || u.Hostname() == "":
		wrong.add("http", "%q has no host", u.Redacted())
	case u.Port() != "" && checkPort(u.Port()) != nil:
		wrong.add("http", "%q %s", u.Redacted(), checkPort(u.Port()))
	case u.Scheme == "http" && d.TLS != (TLS{}):
		wrong.add("http", "%q: TLS settings need an https URL", u.Redacted())
	}
	if strings.ContainsFunc(d.Method, notToken) {
		wrong.add("method", "%q is no HTTP method; write one such as GET or HEAD", d.Method)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Header)) {
		values := d.Header[name]
		if name == "" || strings.ContainsFunc(name, notToken) {
			wrong.add("header", "%q is no header's name", name)
		}
		for _, value := range values {
			if strings.ContainsFunc(value, isControl) {
				wrong.add("header", "the value of %s has control characters", name)
			}
		}
	}
	if len(d.Body) > maxBodyLength {
		wrong.add("body", "has %d bytes, more than %d", len(d.Body), maxBodyLength)
	}
}

// mistakes collects what is wrong with a definition.
type mistakes []error

func (m *mistakes) add(key, format string, args ...any) {
	*m = append(*m, &Mistake{Key: key, Problem: fmt.Sprintf(format, args...)})
}

func (m *mistakes) duration(key string, value, low, high time.Duration) {
	if value != 0 && (value < low || value > high) {
		m.add(key, "%s is not within %s to %s", value, low, high)
	}
}

func (m *mistakes) count(key string, value, high int) {
	if value < 0 || value > high {
		m.add(key, "%d is not within 1 to %d", value, high)
	}
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("is not host:port")
	}
	if host == "" {
		return errors.New("has no host before the port")
	}
	return checkPort(port)
}

func checkPort(s string) error {
	if port, err := strconv.ParseUint(s, 10, 16); err != nil || port == 0 {
		return fmt.Errorf("has port %s, not 1 to 65535", s)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// notToken follows RFC 9110 §5.6.2.
func notToken(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

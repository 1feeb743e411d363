// Package check probes services: TCP, UDP, SSH, HTTP(S), gRPC, DNS, NTP, script, process, alias, TTL. A probe
// gives a result; a Machine makes a state out of results (rise, fall, TTL);
// a Runner repeats probes and reports what changed.
package check

import (
	"errors"
	"reflect"
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

	aliasInterval = time.Second // costs a look into memory

	maxIDLength   = 256
	maxBodyLength = 64 << 10
)

// Definition says how a check is made. Exactly one of TCP, UDP, SSH, HTTP, GRPC, DNS, NTP,
// Script, Process, Alias and TTL is set.
type Definition struct {
	ID        string // unique on the node; "service:<service ID>" unless said
	Name      string
	Notes     string
	ServiceID string // "" speaks of the node

	TCP     string // host:port
	UDP     string // host:port
	Send    string // of TCP and UDP: what is sent
	Expect  string // of TCP and UDP: what must be in the answer
	GRPC    string // host:port, or host:port/service
	GRPCTLS bool   // of GRPC
	SSH     string // host:port
	NTP     string // host:port
	HTTP    string // URL, http or https
	Method  string // of HTTP; GET unless said
	Header  map[string][]string
	Body    string
	TLS     TLS      // of HTTP and GRPC
	DNS     string   // address:port of the server that is asked
	Query   string   // of DNS: "example.com AAAA"; ". NS" unless said
	Script  []string // argv; never a shell
	User    string   // of Script: who it runs as; the agent's own user unless said
	Alias   *Alias   // whose state it takes
	Process string   // comm name of a process that must be alive
	TTL     time.Duration

	Interval time.Duration // 10 s unless said; at least 100 ms
	Timeout  time.Duration // at most Interval unless said: min(Interval, 10 s)
	Rise     int           // successes in a row before passing; 1 unless said
	Fall     int           // failures in a row before critical; 1 unless said

	// Damp is in what time the points of a check that falls again and again
	// halve: see damper. 0: it is not damped.
	Damp time.Duration

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

// Type is the kind of the check as the catalog names it: "tcp", "udp", "ssh", "http",
// "grpc", "dns", "ntp", "script", "process", "alias", "ttl"; "" when none or several are set.
func (d Definition) Type() string {
	kinds := [...]struct {
		name string
		set  bool
	}{
		{"tcp", d.TCP != ""},
		{"udp", d.UDP != ""},
		{"ssh", d.SSH != ""},
		{"http", d.HTTP != ""},
		{"grpc", d.GRPC != ""},
		{"dns", d.DNS != ""},
		{"ntp", d.NTP != ""},
		{"script", len(d.Script) > 0},
		{"process", d.Process != ""},
		{"alias", d.Alias != nil},
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
	if d.Interval == 0 && d.Alias != nil {
		d.Interval = aliasInterval
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
	wrong.duration("damp", d.Damp, minDamp, maxDamp)
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

// Package check probes services: TCP, HTTP(S), script, process, TTL. A probe
// gives a result; a Runner repeats it and reports transitions.
package check

import (
	"time"

	"holdfast/internal/state"
)

// Definition says how a check is made. Exactly one of TCP, HTTP, Script,
// Process and TTL is set.
type Definition struct {
	ID        string // unique on the node; "service:<service ID>" unless said
	Name      string
	Notes     string
	ServiceID string // "" speaks of the node

	TCP     string // host:port
	HTTP    string // URL, http or https
	Method  string // of HTTP; GET unless said
	Header  map[string][]string
	Body    string
	TLS     TLS
	Script  []string // argv; never a shell
	Process string   // comm name of a process that must be alive
	TTL     time.Duration

	Interval time.Duration // 10 s unless said; at least 100 ms
	Timeout  time.Duration // at most Interval unless said: min(Interval, 10 s)
	Rise     int           // successes in a row before passing; 1 unless said
	Fall     int           // failures in a row before critical; 1 unless said

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

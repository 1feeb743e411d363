package check

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"holdfast/internal/state"
)

// OutputInterval is how often a check whose state stays the same may report
// that its output changed. A transition carries its output at once.
const OutputInterval = time.Minute

// ResumeGrace is how long after a start the owner of a TTL check has to speak
// again, at least, unless the TTL is shorter still: while the agent did not
// run, nobody took its updates.
const ResumeGrace = time.Minute

// Report is a state that a check has come to.
type Report struct {
	ID     string // of the check
	Status state.Status
	Output string    // at most state.MaxOutput bytes of UTF-8
	At     time.Time // of the result that decided it

	// Transition is false when only the output changed.
	Transition bool
}

// Machine makes a check's state out of the results of its probes, or out of
// the updates of its owner (TTL). It is pure: time comes with the events, and
// it is not safe for concurrent use.
//
// A check begins undetermined in its initial state. One failure confirms an
// initial state of critical; everything else takes rise or fall. Between
// passing and warning the last result decides.
type Machine struct {
	id         string
	rise, fall int
	ttl        time.Duration

	raw        state.Status // without damping
	damper     damper
	status     state.Status
	output     string
	determined bool
	good, bad  int // results in a row

	expires      time.Time // of a TTL check; zero: nothing to expire
	lastUpdate   time.Time
	reported     string
	lastReported time.Time
}

// NewMachine returns the machine of a check that starts now.
func NewMachine(d Definition, now time.Time) *Machine {
	d = d.WithDefaults()
	m := &Machine{id: d.ID, rise: d.Rise, fall: d.Fall, ttl: d.TTL, status: d.Initial, raw: d.Initial, damper: damper{half: d.Damp}, lastUpdate: now}
	if m.ttl > 0 {
		m.expires = now.Add(m.ttl)
	}
	return m
}

// Resume takes a TTL check over from a life of the program in which its owner
// last spoke at the given time: the time until now counts, but for
// ResumeGrace. A last time that is zero, or that lies ahead because the clock
// was set back, tells nothing.
func (m *Machine) Resume(last, now time.Time) {
	if m.ttl <= ResumeGrace || last.IsZero() || !last.Before(now) {
		return
	}
	m.lastUpdate, m.expires = last, last.Add(m.ttl)
	if soonest := now.Add(ResumeGrace); m.expires.Before(soonest) {
		m.expires = soonest
	}
}

// Status is the state as decided so far.
func (m *Machine) Status() state.Status { return m.status }

// Determined tells whether a result has decided the state since the start.
// Until then what was known before (the catalog) is as good.
func (m *Machine) Determined() bool { return m.determined }

// Step takes the result of a probe. The report is to be made when ok.
func (m *Machine) Step(r Result) (report Report, ok bool) {
	if r.Status == state.Passing || r.Status == state.Warning {
		m.good, m.bad = m.good+1, 0
	} else {
		r.Status = state.Critical
		m.good, m.bad = 0, m.bad+1
	}
	decided := false
	switch {
	case m.good > 0:
		decided = m.raw != state.Critical || m.good >= m.rise
	case m.bad > 0:
		decided = m.raw == state.Critical || m.bad >= m.fall
	}
	if !decided {
		return Report{}, false
	}
	was := m.raw
	m.raw = r.Status
	status, output := m.damper.step(was, r.Status, r.Output, r.At)
	return m.decide(status, output, r.At)
}

// Update takes the word of a TTL check's owner and starts its time again.
func (m *Machine) Update(status state.Status, output string, now time.Time) (report Report, ok bool) {
	m.lastUpdate, m.expires = now, now.Add(m.ttl)
	return m.decide(status, output, now)
}

// Deadline is when Expire is to be called; ok is false when never.
func (m *Machine) Deadline() (at time.Time, ok bool) { return m.expires, !m.expires.IsZero() }

// Expire makes a TTL check critical whose time is over.
func (m *Machine) Expire(now time.Time) (report Report, ok bool) {
	if m.expires.IsZero() || now.Before(m.expires) {
		return Report{}, false
	}
	m.expires = time.Time{}
	return m.decide(state.Critical, fmt.Sprintf("TTL of %s is over: no update since %s", m.ttl, m.lastUpdate.UTC().Format(time.RFC3339)), now)
}

// decide takes a state and tells whether it is worth a report.
func (m *Machine) decide(status state.Status, output string, now time.Time) (Report, bool) {
	transition := status != m.status || !m.determined
	m.status, m.output, m.determined = status, clean(output), true
	stale := m.output != m.reported && now.Sub(m.lastReported) >= OutputInterval
	if !transition && !stale {
		return Report{}, false
	}
	m.reported, m.lastReported = m.output, now
	return Report{ID: m.id, Status: status, Output: m.output, At: now, Transition: transition}, true
}

// clean makes output fit for the catalog: UTF-8, without trailing white space
// and at most state.MaxOutput bytes.
func clean(output string) string {
	output = strings.TrimSpace(strings.ToValidUTF8(output, "\ufffd"))
	if len(output) <= state.MaxOutput {
		return output
	}
	end := state.MaxOutput
	for !utf8.RuneStart(output[end]) {
		end--
	}
	return output[:end]
}

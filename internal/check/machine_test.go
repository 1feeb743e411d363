package check

import (
	"strings"
	"testing"
	"time"

	"holdfast/internal/state"
)

// A script is one line an event: when, what, and after "->" what must be
// reported: nothing, STATUS (a transition) or "output" (the output only).
func TestMachineFollowsItsScript(t *testing.T) {
	tests := []struct {
		name       string
		definition Definition
		script     string
	}{
		{"the first result decides at once", Definition{}, `
			0s   passing ok       -> passing
			10s  critical refused -> critical
			20s  passing ok       -> passing`},
		{"the same again is not reported", Definition{}, `
			0s   passing ok -> passing
			10s  passing ok -> nothing
			20s  passing ok -> nothing`},
		{"one failure confirms an initial critical", Definition{Fall: 3}, `
			0s   critical refused -> critical
			10s  critical refused -> nothing`},
		{"an initial passing takes fall failures", Definition{Fall: 3, Initial: state.Passing}, `
			0s   critical refused -> nothing
			10s  critical refused -> nothing
			20s  critical refused -> critical`},
		{"an initial passing is confirmed by one success", Definition{Rise: 3, Initial: state.Passing}, `
			0s   passing ok -> passing`},
		{"rise successes in a row", Definition{Rise: 3}, `
			0s   passing ok       -> nothing
			10s  passing ok       -> nothing
			20s  critical refused -> critical
			30s  passing ok       -> nothing
			40s  passing ok       -> nothing
			50s  passing ok       -> passing`},
		{"fall failures in a row", Definition{Fall: 2}, `
			0s   passing ok       -> passing
			10s  critical refused -> nothing
			20s  passing ok       -> nothing
			30s  critical refused -> nothing
			40s  critical refused -> critical`},
		{"passing and warning change at once", Definition{Rise: 2, Fall: 3}, `
			0s   warning slow -> nothing
			10s  warning slow -> warning
			20s  passing ok   -> passing
			30s  warning slow -> warning`},
		{"a warning counts as a success", Definition{Rise: 2}, `
			0s   critical refused -> critical
			10s  warning slow     -> nothing
			20s  passing ok       -> passing`},
		{"an unknown state is critical", Definition{}, `
			0s   odd what -> critical`},
		{"a new output is reported once a minute", Definition{}, `
			0s   critical one   -> critical
			10s  critical two   -> nothing
			59s  critical three -> nothing
			60s  critical four  -> output
			70s  critical five  -> nothing
			80s  passing six    -> passing
			130s passing seven  -> nothing
			140s passing eight  -> output
			300s passing eight  -> nothing`},
		{"a TTL expires unless updated", Definition{TTL: 30 * time.Second}, `
			20s  update passing fine -> passing
			49s  expire              -> nothing
			50s  expire              -> critical
			90s  expire              -> nothing
			91s  update warning late -> warning
			121s expire              -> critical`},
		{"a TTL that is never updated", Definition{TTL: 30 * time.Second}, `
			29s  expire -> nothing
			30s  expire -> critical`},
		{"an initial passing TTL expires too", Definition{TTL: 30 * time.Second, Initial: state.Passing}, `
			30s  expire -> critical`},
		{"an update of a TTL with the same state reports nothing", Definition{TTL: 30 * time.Second}, `
			0s   update passing fine -> passing
			10s  update passing fine -> nothing
			39s  expire              -> nothing
			40s  expire              -> critical`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.definition.ID = "c"
			play(t, test.definition, test.script)
		})
	}
}

func play(t *testing.T, d Definition, script string) {
	t.Helper()
	start := time.Unix(0, 0)
	m := NewMachine(d, start)
	for line := range strings.Lines(strings.TrimSpace(script)) {
		event, want, _ := strings.Cut(strings.TrimSpace(line), "->")
		words := strings.Fields(event)
		after, err := time.ParseDuration(words[0])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		now := start.Add(after)
		var report Report
		var ok bool
		switch words[1] {
		case "expire":
			report, ok = m.Expire(now)
		case "update":
			report, ok = m.Update(state.Status(words[2]), words[3], now)
		default:
			report, ok = m.Step(Result{Status: state.Status(words[1]), Output: words[2], At: now})
		}
		if got := describe(report, ok); got != strings.TrimSpace(want) {
			t.Errorf("%s: reported %s, want %s", strings.TrimSpace(event), got, strings.TrimSpace(want))
		}
		if ok && (report.ID != d.ID || !report.At.Equal(now)) {
			t.Errorf("%s: report %+v: wrong ID or time", event, report)
		}
	}
}

func describe(r Report, ok bool) string {
	switch {
	case !ok:
		return "nothing"
	case r.Transition:
		return string(r.Status)
	}
	return "output"
}

func TestUndeterminedUntilDecided(t *testing.T) {
	m := NewMachine(Definition{ID: "c", Rise: 2}, time.Unix(0, 0))
	if m.Status() != state.Critical || m.Determined() {
		t.Errorf("at the start: %s, determined %t; want critical, undetermined", m.Status(), m.Determined())
	}
	m.Step(Result{Status: state.Passing})
	if m.Determined() {
		t.Error("determined after one success of two")
	}
	m.Step(Result{Status: state.Passing})
	if m.Status() != state.Passing || !m.Determined() {
		t.Error("undetermined after both successes")
	}
}

func TestOutputIsCleanedAndBounded(t *testing.T) {
	m := NewMachine(Definition{ID: "c"}, time.Unix(0, 0))
	report, _ := m.Step(Result{Status: state.Passing, Output: " a\xffb\n"})
	if report.Output != "a\ufffdb" {
		t.Errorf("output %q", report.Output)
	}
	long := strings.Repeat("a", state.MaxOutput-1) + "é" // the bound is inside the last rune
	report, _ = m.Step(Result{Status: state.Critical, Output: long})
	if want := strings.Repeat("a", state.MaxOutput-1); report.Output != want {
		t.Errorf("output of %d bytes, want %d", len(report.Output), len(want))
	}
}

// Whatever the results are, the machine is critical exactly when the last
// fall results were failures and no rise successes followed.
func TestMachineAgreesWithItsDefinition(t *testing.T) {
	for rise := 1; rise <= 3; rise++ {
		for fall := 1; fall <= 3; fall++ {
			for bits := range 1 << 10 {
				m := NewMachine(Definition{ID: "c", Rise: rise, Fall: fall}, time.Unix(0, 0))
				history := ""
				model := "critical"
				for i := range 10 {
					r := Result{Status: state.Passing}
					if bits>>i&1 == 0 {
						r.Status = state.Critical
					}
					history += string(r.Status[0])
					m.Step(r)
					if strings.HasSuffix(history, strings.Repeat("c", fall)) {
						model = "critical"
					}
					if strings.HasSuffix(history, strings.Repeat("p", rise)) {
						model = "passing"
					}
					if string(m.Status()) != model {
						t.Fatalf("rise %d, fall %d, %s: %s, want %s", rise, fall, history, m.Status(), model)
					}
				}
			}
		}
	}
}

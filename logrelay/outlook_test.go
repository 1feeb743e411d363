package logrelay

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestTheAgeOfWhatWaitsIsKnownWithoutTheDisk: to the second for an hour, and
// less finely after days of an output that is down.
func TestTheAgeOfWhatWaitsIsKnownWithoutTheDisk(t *testing.T) {
	var a ages
	start := time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	a.begin([]moment{{100, start}, {51, start.Add(-time.Hour)}}) // an output stood at 50
	check := func(number uint64, now time.Time, want, within time.Duration) {
		t.Helper()
		if got := a.of(number, now); got < want-within || got > want+within {
			t.Errorf("line %d is %v old, want %v, give or take %v", number, got, want, within)
		}
	}
	check(50, start, time.Hour, 0)
	check(99, start, 0, 0)
	check(100, start, 0, 0) // it does not exist yet
	now := start
	for second := range 4 * 24 * 3600 {
		now = start.Add(time.Duration(second+1) * time.Second)
		a.note(uint64(100+10*(second+1)), 50, now)
		if second == 1799 {
			check(50, now, 90*time.Minute, 0)
			check(100+10*900, now, 15*time.Minute, time.Second)
		}
	}
	check(50, now, 97*time.Hour, 4*time.Minute)
	check(100+10*3600*24, now, 72*time.Hour, 4*time.Minute)
	if n := len(a.moments); n > mostMoments {
		t.Errorf("%d moments are remembered", n)
	}
	end := uint64(100 + 10*4*24*3600)
	a.note(end, end, now.Add(time.Second))
	a.note(end+5, end, now.Add(time.Hour))
	check(end+1, now.Add(time.Hour+10*time.Second), 10*time.Second, 0)
	if n := len(a.moments); n != 1 || a.every != watchEvery/2 {
		t.Errorf("with nothing waiting: %d moments, one every %v", n, a.every)
	}
}

// gathered are the values of a relay's metrics, by name and label value.
func gathered(t *testing.T, s *Server) map[string]float64 {
	t.Helper()
	families, err := s.deps.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// TestMetricsTellHowFarBehindAnOutputIs, and by which input what was
// acknowledged came.
func TestMetricsTellHowFarBehindAnOutputIs(t *testing.T) {
	s, _, _ := serve(t, func(s *settings) {
		s.forward = []target{{name: "siem", via: viaRELP, addresses: []string{"127.0.0.1:1"}}}
	})
	began := time.Now()
	if err := numberedLines(s, "cn1", 20); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "metrics", func() error {
		v := gathered(t, s)
		lag, most := v["holdfast_logs_lag_seconds siem"], time.Since(began).Seconds()+1 // however it is rounded
		if v["holdfast_logs_waiting_lines siem"] != 20 || lag < 1 || lag > most {
			return fmt.Errorf("the target: %v", v)
		}
		if v["holdfast_logs_acknowledged_lines_total relp"] != 20 {
			return fmt.Errorf("acknowledged: %v", v)
		}
		return nil
	})
	eventually(t, time.Minute, "the files have all", func() error {
		s.flushing.ask()
		if v := gathered(t, s); v["holdfast_logs_waiting_lines files"] != 0 || v["holdfast_logs_lag_seconds files"] != 0 {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
}

// TestABlockThatRotsWhileTheRelayRunsIsSaid, when somebody comes to it.
func TestABlockThatRotsWhileTheRelayRunsIsSaid(t *testing.T) {
	s, dir, board := prepare(t)
	run(t, s)
	if err := numberedLines(s, "cn1", 10); err != nil {
		t.Fatal(err)
	}
	raised(t, board, conditionDamaged, false)
	names, err := filepath.Glob(filepath.Join(dir, "logs", "*.journal"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	file, err := os.OpenFile(names[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("rot"), 32+30); err != nil { // in the first block's lines
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	s.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, SummaryPath+"?by=host", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("%d: %s", answer.Code, answer.Body)
	}
	raised(t, board, conditionDamaged, true)
	if v := gathered(t, s); v["holdfast_logs_damaged_bytes"] == 0 {
		t.Error("it is in no metric")
	}
}

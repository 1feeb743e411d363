package api

import (
	"log/slog"
	"net/http"
	"testing"

	"holdfast/internal/telemetry"
)

func TestConsulsClientTakesProfilesOnlyWhereItMayOperate(t *testing.T) {
	tail := telemetry.NewTail(slog.DiscardHandler)
	c := withAgent(t, func(_ *Config, deps *Deps) { deps.Logs = tail })
	heap, err := c.admin().Debug().Heap()
	if err != nil || len(heap) == 0 {
		t.Errorf("heap: %d bytes, %v", len(heap), err)
	}
	if cpu, err := c.admin().Debug().Profile(1); err != nil || len(cpu) == 0 {
		t.Errorf("profile: %d bytes, %v", len(cpu), err)
	}
	for _, path := range []string{"/debug/pprof/heap", "/debug/pprof/goroutine?debug=2", "/v1/holdfast/log"} {
		if code, _, text := c.get(path); code != http.StatusForbidden {
			t.Errorf("over loopback, %s: %d %.80s", path, code, text)
		}
	}
	for path, code := range map[string]int{
		"/debug/pprof/cmdline": 404, "/debug/pprof/": 404, "/debug/pprof/profile?seconds=61": 400, "/debug/pprof/trace?seconds=x": 400,
		"/v1/holdfast/log": 200,
	} {
		if answer := c.ask(path); answer.Code != code {
			t.Errorf("%s: %d, want %d", path, answer.Code, code)
		}
	}
}

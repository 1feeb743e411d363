package vrrp

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
)

// TestReconfigureAndQuestionsMayComeAtAnyTime runs the service again and again
// while others ask and change. The interface is one that there is not, so
// nothing but the loop's own state is touched.
func TestReconfigureAndQuestionsMayComeAtAnyTime(t *testing.T) {
	s, err := New(Config{Node: "n1", RunDir: t.TempDir(), Settings: absent("a")}, Deps{
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: health.NewBoard(time.Now, func(health.Condition) {}, func(health.Condition) {}),
	})
	if err != nil {
		t.Fatal(err)
	}
	asked := []func(){
		func() { _ = s.Reconfigure(absent("a", "b")) },
		func() { _ = s.Reconfigure(absent("b")) },
		func() { _, _ = s.Status(context.Background()) },
		func() { _, _ = s.Plan(context.Background()) },
		func() { _ = s.Pull(context.Background(), "a"); _ = s.Release(context.Background(), "a") },
		func() { _, _ = s.Guard(), s.Suspended() },
	}
	for range 20 {
		var others sync.WaitGroup
		for _, f := range asked { // before, while and after it runs
			others.Go(func() {
				for range 20 {
					f()
				}
			})
		}
		ctx, cancel := context.WithCancel(context.Background())
		if err := s.Run(ctx, cancel); err != nil {
			t.Error(err)
		}
		others.Wait()
	}
}

// absent are routers on an interface that there is not.
func absent(names ...string) (s Settings) {
	for i, name := range names {
		core := loopRouter()
		core.Name, core.VRID, core.Interface = name, uint8(i+1), "absent0"
		s.Routers = append(s.Routers, RouterSettings{Router: core, MinTTL: 255})
	}
	return s
}

package vrrp

import (
	"context"
	"log/slog"
	"strings"
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

// A Run that ends with an error can be followed by another, and what the first
// complained of is not complained of for ever.
func TestRunAfterAnErrorBeginsAnew(t *testing.T) {
	board := health.NewBoard(time.Now, func(health.Condition) {}, func(health.Condition) {})
	s, err := New(Config{Node: "n1", RunDir: t.TempDir(), Settings: absent("a")}, Deps{
		Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Board: board,
	})
	if err != nil {
		t.Fatal(err)
	}
	disagreement := conditionOf("a", aboutDisagreement)
	err = s.Run(t.Context(), func() {
		live, err := s.session()
		if err != nil {
			t.Error(err)
			return
		}
		live.loop.mail.post(func() {
			board.Raise(disagreement, health.Error, "a peer disagrees")
			panic("a broken invariant")
		})
	})
	if err == nil || !strings.Contains(err.Error(), "a broken invariant") {
		t.Errorf("Run returned %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Run(ctx, func() {
		if reports, err := s.Status(ctx); err != nil || len(reports) != 1 {
			t.Errorf("%d reports, %v", len(reports), err)
		}
		cancel()
	}); err != nil {
		t.Error(err)
	}
	for _, c := range board.Conditions() {
		if c.Name == disagreement {
			t.Errorf("still said: %s", c.Message)
		}
	}
}

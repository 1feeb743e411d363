package telemetry

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestAFollowerHearsWhatTheLogLeavesOut(t *testing.T) {
	var out bytes.Buffer
	tail := NewTail(slog.NewTextHandler(&out, nil))
	log := slog.New(tail).With("service", "api").WithGroup("g").With("a", 1)
	log.Debug("before")
	lines, stop := tail.Follow(slog.LevelDebug, false)
	log.Debug("quiet", "b", 2)
	log.Info("loud")
	stop()
	log.Warn("after")
	close := string(<-lines) + string(<-lines)
	if !strings.Contains(close, `msg=quiet service=api g.a=1 g.b=2`) || !strings.Contains(close, "msg=loud") {
		t.Errorf("the follower heard %s", close)
	}
	select {
	case line := <-lines:
		t.Errorf("after it stopped it heard %s", line)
	default:
	}
	if said := out.String(); strings.Contains(said, "quiet") || strings.Contains(said, "before") || !strings.Contains(said, "loud") || !strings.Contains(said, "after") {
		t.Errorf("the log says %s", said)
	}
}

func TestASlowFollowerHoldsNobodyUp(t *testing.T) {
	tail := NewTail(slog.DiscardHandler)
	lines, stop := tail.Follow(slog.LevelInfo, true)
	defer stop()
	for range 2 * tailLines {
		slog.New(tail).Info("x")
	}
	if len(lines) != tailLines {
		t.Errorf("%d lines wait", len(lines))
	}
	if line := string(<-lines); !strings.Contains(line, `"msg":"x"`) {
		t.Errorf("no JSON: %s", line)
	}
}

func TestTheLastLinesAreKeptAndNoMore(t *testing.T) {
	var out bytes.Buffer
	tail := NewTail(slog.NewTextHandler(&out, nil))
	log := slog.New(tail)
	log.Debug("below the level")
	log.Info("the first")
	for i := range recentLines - 1 {
		log.With("n", i).Info("line")
	}
	lines := tail.Recent()
	if len(lines) != recentLines || !strings.Contains(string(lines[0]), "the first") {
		t.Fatalf("%d lines, the first %s", len(lines), lines[0])
	}
	log.Info(strings.Repeat("long", recentBytes))
	lines = tail.Recent()
	if last := lines[recentLines-1]; len(lines) != recentLines || !strings.Contains(string(lines[0]), "n=0") || len(last) > recentBytes+4 || last[len(last)-1] != '\n' {
		t.Errorf("%d lines, the first %s, the last of %d bytes", len(lines), lines[0], len(last))
	}
}

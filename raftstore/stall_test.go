package raftstore

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/state"
)

// slowLog takes its time for every write.
type slowLog struct {
	raft.LogStore
	takes time.Duration
}

func (s slowLog) StoreLogs([]*raft.Log) error {
	time.Sleep(s.takes)
	return nil
}

func stallsOf(t *testing.T, s *Store, kind stallKind) (count uint64) {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(s.metrics.stalls); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == string(kind) {
				count = m.GetHistogram().GetSampleCount()
			}
		}
	}
	return count
}

// A write that the disk takes long for is counted from 50 ms, and told with its
// beginning from half a heartbeat's timeout: with a multiplier of all times,
// that many times later.
func TestWhatTheDiskHoldsUpIsCountedAndTold(t *testing.T) {
	for _, c := range []struct {
		takes   time.Duration
		timing  float64
		counted uint64
		told    bool
	}{
		{40 * time.Millisecond, 1, 0, false},
		{60 * time.Millisecond, 1, 1, false},
		{140 * time.Millisecond, 1, 1, false},
		{160 * time.Millisecond, 1, 1, true},
		{160 * time.Millisecond, 2, 1, false},
		{310 * time.Millisecond, 2, 1, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			log := &logBuffer{}
			s := newStallStore(t, c.timing, log)
			if err := (timedLog{slowLog{takes: c.takes}, s.stalled}).StoreLog(&raft.Log{}); err != nil {
				t.Fatal(err)
			}
			if n := stallsOf(t, s, stallDisk); n != c.counted {
				t.Errorf("%+v: counted %d times", c, n)
			}
			if told := strings.Contains(log.String(), "by=disk lasted="+c.takes.String()); told != c.told {
				t.Errorf("%+v: log %q", c, log.String())
			}
		})
	}
}

// A process that gets no processor measures it when it has one again.
func TestAProcessThatWasStoppedKnowsIt(t *testing.T) {
	log := &logBuffer{}
	s := newStallStore(t, 1, log)
	due := time.Now()
	s.stalled(stallProcessor, due, due.Add(151*time.Millisecond))
	if n := stallsOf(t, s, stallProcessor); n != 1 || !strings.Contains(log.String(), "by=processor lasted=151ms since="+due.UTC().Format(time.RFC3339Nano)) {
		t.Errorf("counted %d, log %q", n, log.String())
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		(&engine{store: s}).watchProcessor(ctx)
	}()
	stop()
	select {
	case <-ended:
	case <-time.After(soon):
		t.Error("the watch does not end")
	}
}

func newStallStore(t *testing.T, timing float64, log *logBuffer) *Store {
	t.Helper()
	s, err := New(Config{
		Node: "fb1", NodeID: newUUID(), DataDir: t.TempDir(), Cluster: "foobar", Timing: timing,
		Listen: netip.MustParseAddrPort("127.0.0.1:8300"), Insecure: true,
	}, state.New(), Deps{Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// One multiplier scales all times, for a slow network or slow disks: none is
// left out, also none that is added.
func TestOneMultiplierScalesEveryTime(t *testing.T) {
	one, three := reflect.ValueOf(Config{Timing: 1}.timings()), reflect.ValueOf(Config{Timing: 3}.timings())
	for i := range one.NumField() {
		name := one.Type().Field(i).Name
		if a, b := one.Field(i).Int(), three.Field(i).Int(); a <= 0 || b != 3*a {
			t.Errorf("%s: %v at 1, %v at 3", name, time.Duration(a), time.Duration(b))
		}
	}
	if one.NumField() < 15 {
		t.Errorf("only %d times", one.NumField())
	}
}

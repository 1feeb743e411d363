package journal

import (
	"os"
	"testing"
	"time"
)

// TestOldSegmentsAreNotRead: five segments with one record each, the first
// written to at noon and each other an hour later.
func TestOldSegmentsAreNotRead(t *testing.T) {
	j, stop := open(t, Config{Dir: t.TempDir(), Segment: 1, Keep: 1 << 30})
	for range 5 {
		if err := put(t, j, "x"); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	noon := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for i, s := range j.segments {
		at := noon.Add(time.Duration(i) * time.Hour)
		if err := os.Chtimes(s.path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	for after, want := range map[time.Duration]uint64{
		-time.Hour: 0, 0: 0, time.Second: 1, time.Hour: 1, 61 * time.Minute: 2, 4 * time.Hour: 4, 5 * time.Hour: 5,
	} {
		if got := j.Since(noon.Add(after)); got != want {
			t.Errorf("since %v after noon: from record %d on, want %d", after, got, want)
		}
	}
	if err := os.Remove(j.segments[1].path); err != nil {
		t.Fatal(err)
	}
	if got := j.Since(noon.Add(90 * time.Minute)); got != 1 {
		t.Errorf("with a segment that can't be looked at: from %d on, want 1: it may have some", got)
	}
}

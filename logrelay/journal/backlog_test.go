package journal

import "testing"

// TestWhatIsKeptForACursorIsMeasuredInSegments: in each there is one block of
// two records here.
func TestWhatIsKeptForACursorIsMeasuredInSegments(t *testing.T) {
	j, stop := open(t, Config{Dir: t.TempDir(), Segment: 1, Keep: 1 << 30})
	if j.Behind(0) != 0 || j.Newest(0) != 0 {
		t.Errorf("an empty journal: %d bytes, from %d on", j.Behind(0), j.Newest(0))
	}
	for range 5 {
		if err := put(t, j, "one", "two"); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	one := j.Bytes() / 5
	for next, want := range map[uint64]int64{0: 5 * one, 1: 5 * one, 2: 4 * one, 7: 2 * one, 8: one, 9: one, 10: 0, 11: 0} {
		if got := j.Behind(next); got != want {
			t.Errorf("a cursor at %d keeps %d bytes, want %d", next, got, want)
		}
	}
	for most, want := range map[int64]uint64{0: 8, one: 8, 2*one - 1: 8, 2 * one: 6, 4*one + 1: 2, 5 * one: 0, 1 << 40: 0} {
		if got := j.Newest(most); got != want {
			t.Errorf("the newest %d bytes begin at %d, want %d", most, got, want)
		}
		if got := j.Behind(j.Newest(most)); got > max(most, one) {
			t.Errorf("of the newest %d bytes there are %d", most, got)
		}
	}
}

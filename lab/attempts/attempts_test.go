package attempts

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestItWorksSinceTheFirstAttemptAfterTheLastThatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		s := Start(t.Context(), 50*time.Millisecond, func(int) error {
			at := time.Since(begun)
			time.Sleep(10 * time.Millisecond)
			if at > 200*time.Millisecond && at < 500*time.Millisecond {
				time.Sleep(100 * time.Millisecond)
				return errors.New("away")
			}
			return nil
		})
		time.Sleep(450 * time.Millisecond)
		if _, err := s.Works(100 * time.Millisecond); !errors.Is(err, ErrStillFailing) {
			t.Errorf("in the middle: %v", err)
		}
		time.Sleep(1010 * time.Millisecond)
		since, err := s.Works(500 * time.Millisecond)
		if took := since.Sub(begun); err != nil || took != 510*time.Millisecond {
			t.Errorf("works since %v, %v; want 510ms", took, err)
		}
		s.Stop()
		if made, failed := s.Count(); made != 30 || failed != 5 {
			t.Errorf("%d of %d failed; want 5 of 30", failed, made)
		}
	})
}

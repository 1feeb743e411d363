package chaos

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestGetentGivesEachAddressOnce(t *testing.T) {
	const printed = "10.1.0.2        STREAM apt.service.virtual\n10.1.0.2        DGRAM  \n10.1.0.2        RAW    \n10.1.0.1        STREAM \n"
	if diff := cmp.Diff([]string{"10.1.0.2", "10.1.0.1"}, Getent(printed)); diff != "" {
		t.Error(diff)
	}
}

func TestLookupWithoutAnAddressCountsAsFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		l := &Lookups{Workers: 1, Pause: time.Second, Resolve: func(context.Context) ([]string, error) {
			time.Sleep(100 * time.Millisecond)
			switch n++; n {
			case 1:
				return []string{"10.1.0.1"}, nil
			case 2:
				return nil, nil
			}
			return nil, errors.New("timed out")
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		l.Run(ctx)
		failed, slowest := Failed(l.Results())
		if len(l.Results()) != 3 || len(failed) != 2 || slowest != 100*time.Millisecond {
			t.Errorf("%d look-ups, %d failed, slowest %v", len(l.Results()), len(failed), slowest)
		}
	})
}

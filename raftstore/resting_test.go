package raftstore

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A digest that does not rest keeps a processor busy, on all servers at once; one
// that rests without end comes too late for the leader's comparison.
func TestADigestRestsInProportionAndNotWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got bytes.Buffer
		w, began := newRestingWriter(t.Context(), &got), time.Now()
		write := func(pieces int, work time.Duration) time.Duration {
			for range pieces {
				time.Sleep(work)
				if n, err := w.Write([]byte("piece")); n != 5 || err != nil {
					t.Fatal(n, err)
				}
			}
			return time.Since(began)
		}
		if took := write(50, 2*time.Millisecond); took != 400*time.Millisecond {
			t.Errorf("100 ms of work took %v, want 400 ms", took)
		}
		if took, want := write(2000, 2*time.Millisecond), 4100*time.Millisecond+restInAll; took != want {
			t.Errorf("4.1 s of work took %v, want %v", took, want)
		}
		if got.Len() != 2050*5 {
			t.Errorf("%d bytes arrived, want all", got.Len())
		}
	})
}

func TestADigestThatRestsEndsWithTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := newRestingWriter(ctx, new(bytes.Buffer))
		time.Sleep(500 * time.Millisecond)
		time.AfterFunc(10*time.Millisecond, cancel)
		began := time.Now()
		if _, err := w.Write([]byte("piece")); !errors.Is(err, context.Canceled) || time.Since(began) != 10*time.Millisecond {
			t.Errorf("it ended with %v after %v, want with its context after 10 ms", err, time.Since(began))
		}
	})
}

package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"holdfast/lab"
)

// Seeded returns a generator whose seed is in the test's log; the environment
// variable CHAOS_SEED repeats a run.
func Seeded(t lab.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("CHAOS_SEED"); given != "" {
		if _, err := fmt.Sscan(given, &seed); err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
	}
	t.Logf("CHAOS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

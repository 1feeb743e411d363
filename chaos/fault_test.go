package chaos

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestFaultWithoutEffectIsAnErrorAndIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []string
		one := func(name string, effect error) Fault {
			step := func(what string, err error) func(context.Context) error {
				return func(context.Context) error {
					log = append(log, name+" "+what)
					return err
				}
			}
			return Fault{Name: name, Begin: step("begins", nil), Effect: func(context.Context) error { return effect }, End: step("ends", nil)}
		}
		took, err := Together(one("a", nil), one("b", nil)).Inflict(t.Context(), time.Minute, time.Second)
		if err != nil || took != 0 || !slices.Equal(log, []string{"a begins", "b begins", "b ends", "a ends"}) {
			t.Errorf("%v after %v: %q", err, took, log)
		}
		log = nil
		_, err = Together(one("a", nil), one("b", errors.New("all is well"))).Inflict(t.Context(), time.Minute, time.Second)
		if err == nil || !strings.Contains(err.Error(), "a and b had no effect within 1m0s: b: all is well") || !slices.Contains(log, "b ends") {
			t.Errorf("a fault without effect: %v, %q", err, log)
		}
	})
}

func TestDeckDealsEveryKindAndRepeatsWithItsSeed(t *testing.T) {
	kinds := []string{"kill", "pause", "cut", "full"}
	var first []string
	for range 2 {
		d := NewDeck(rand.New(rand.NewPCG(7, 0)), kinds...)
		var dealt []string
		for range 12 {
			dealt = append(dealt, d.Deal())
		}
		for round := range slices.Chunk(dealt, 4) {
			if sorted := slices.Sorted(slices.Values(round)); !slices.Equal(sorted, slices.Sorted(slices.Values(kinds))) {
				t.Errorf("a round of %v", round)
			}
		}
		if first != nil && !slices.Equal(first, dealt) {
			t.Errorf("the same seed dealt %v and %v", first, dealt)
		}
		first = dealt
	}
}

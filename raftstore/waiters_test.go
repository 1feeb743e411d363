package raftstore

import (
	"math/rand/v2"
	"testing"
)

func TestWaitersAreWokenForTheirEntryAndNoOther(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var w waiters
	var all []*waiter
	gone := map[*waiter]bool{}
	for range 200 {
		one := &waiter{index: random.Uint64N(100), done: make(chan struct{})}
		w.add(one)
		all = append(all, one)
	}
	for index := uint64(0); index <= 100; index++ {
		for range 3 {
			one := all[random.IntN(len(all))]
			gone[one] = gone[one] || one.at >= 0
			w.remove(one)
		}
		w.wake(index)
		for _, one := range all {
			if woken, want := closed(one.done), one.index <= index && !gone[one]; woken != want {
				t.Fatalf("after entry %d, who waits for %d is woken: %v, gave up: %v", index, one.index, woken, gone[one])
			}
		}
	}
	if len(w.heap) != 0 {
		t.Errorf("%d are left", len(w.heap))
	}
}

package raftstore

import "container/heap"

// waiter waits until an entry is in the state.
type waiter struct {
	index uint64
	done  chan struct{}
	at    int // its place in the heap; -1: woken
}

// waiters are ordered by index, so that each entry wakes only those who wait for
// it: hundreds of writers that were all woken by every entry would do little
// else.
type waiters struct{ heap waiterHeap }

func (w *waiters) add(one *waiter) { heap.Push(&w.heap, one) }

// remove takes out one that was not woken.
func (w *waiters) remove(one *waiter) {
	if one.at >= 0 {
		heap.Remove(&w.heap, one.at)
	}
}

// wake wakes those who wait for an entry up to index.
func (w *waiters) wake(index uint64) {
	for len(w.heap) > 0 && w.heap[0].index <= index {
		close(heap.Pop(&w.heap).(*waiter).done)
	}
}

type waiterHeap []*waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].index < h[j].index }
func (h waiterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *waiterHeap) Push(x any) {
	one := x.(*waiter)
	one.at = len(*h)
	*h = append(*h, one)
}

func (h *waiterHeap) Pop() any {
	last := len(*h) - 1
	one := (*h)[last]
	(*h)[last] = nil
	*h, one.at = (*h)[:last], -1
	return one
}

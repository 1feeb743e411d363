package logrelay

import "container/heap"

// reorderBytes is how many bytes of lines a query puts in order at most, beside
// reorderMost.
const reorderBytes = 16 << 20

// wait puts a line among those that are put in order.
func (q *search) wait(n numbered) {
	heap.Push(&q.waiting, n)
	q.bytes += len(n.Line)
}

// oldest takes the oldest of them out.
func (q *search) oldest() *Entry {
	e := heap.Pop(&q.waiting).(numbered).Entry
	q.bytes -= len(e.Line)
	return e
}

// tooMany tells whether more wait than may.
func (q *search) tooMany() bool {
	return len(q.waiting) > reorderMost || q.bytes > reorderBytes
}

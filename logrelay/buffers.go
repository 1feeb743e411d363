package logrelay

// mostBuffers is how many bytes of buffers are kept. Those in use have as many, as
// a rule: the lines that flushBytes allows, and what append took in advance.
const mostBuffers = 2 * flushBytes

// buffers are those that no file uses now, for the next file that has lines: many
// files take turns with few of them. It belongs to one goroutine.
type buffers struct {
	list  [][]byte
	bytes int
}

// take gives an empty one, or nil.
func (b *buffers) take() []byte {
	last := len(b.list) - 1
	if last < 0 {
		return nil
	}
	buf := b.list[last]
	b.list[last], b.list = nil, b.list[:last]
	b.bytes -= cap(buf)
	return buf
}

// give takes one back.
func (b *buffers) give(buf []byte) {
	if cap(buf) > 0 && b.bytes+cap(buf) <= mostBuffers {
		b.list = append(b.list, buf[:0])
		b.bytes += cap(buf)
	}
}

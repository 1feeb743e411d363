package logrelay

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
)

// TestOpenFilesKeepNoBuffers: after each of 200 hosts had a burst of 64 KiB, what
// stays of that is no more than what is buffered before it is written; and one
// burst more takes no other buffer. It fails if each file keeps its own, or if
// nothing is used again.
func TestOpenFilesKeepNoBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newStage(t, `{}`)
		defer x.end()
		o := beginFiles(t, x)
		text := strings.Repeat("x", 64<<10)
		burst := func(host int) {
			t.Helper()
			x.store(fmt.Sprintf("<13>Nov 25 12:00:00 cn%d test: %s", host, text))
			takeAll(t, x, o)
			if err := o.flush(); err != nil {
				t.Fatal(err)
			}
		}
		burst(0)
		one := o.buffers.bytes
		for host := range 200 {
			burst(host)
		}
		kept := o.buffers.bytes
		for _, f := range o.open {
			kept += cap(f.buf)
		}
		if len(o.open) != 200 || one < 64<<10 || kept != one {
			t.Errorf("%d open files keep %d bytes, want the %d of one", len(o.open), kept, one)
		}
		var b buffers
		for range 200 {
			b.give(make([]byte, 0, 64<<10))
		}
		total := 0
		for buf := b.take(); buf != nil; buf = b.take() {
			total += cap(buf)
		}
		if total == 0 || total > mostBuffers || b.bytes != 0 {
			t.Errorf("%d bytes were kept, want %d at most", total, mostBuffers)
		}
	})
}

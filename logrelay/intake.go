package logrelay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"holdfast/logrelay/journal"
)

// Bounds of what comes from another node.
const (
	// intakeAhead is how many shipments are on their way to the disk at most:
	// the next are read while it syncs, and share its next sync.
	intakeAhead = 8
	// intakeBuffer is the greatest buffer in bytes that is used again.
	intakeBuffer = 256 << 10
)

// intake takes one connection's shipments. Two goroutines share it: one reads
// them and appends their lines, the other waits for the disk and answers, in
// order.
type intake struct {
	s       *Server
	from    greeting
	conn    replicaConn
	taken   chan taken
	buffers chan *bytes.Buffer // not in use
	had     uint64             // all before it were here when the connection began
	begun   bool               // a shipment with lines was read
	newest  *shipped           // durable here, and not known to be there; nil: none

	mu        sync.Mutex // also of what stream is told
	stream    *arrivalStream
	unsettled int // shipments that were read and are not known to be stored
}

// replicaConn is a connection of another node.
type replicaConn interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// taken is a shipment on its way to the disk.
type taken struct {
	shipment
	commit journal.Commit
	buf    *bytes.Buffer // has its payload
	since  time.Time     // it was said after that
}

func newIntake(s *Server, from greeting, conn replicaConn) *intake {
	t := &intake{
		s: s, from: from, conn: conn, stream: s.arrivals.stream(from.node),
		// One buffer more is being read into, and one is of what is settled.
		taken: make(chan taken, intakeAhead), buffers: make(chan *bytes.Buffer, intakeAhead+2),
	}
	for range cap(t.buffers) {
		t.buffers <- new(bytes.Buffer)
	}
	return t
}

// run returns when the node leaves, or breaks the rules, or ctx ends. The caller
// ends reads and writes with ctx.
func (t *intake) run(ctx context.Context) error {
	defer t.stream.hears(false)
	defer func() { t.newest.over() }()
	t.had = t.s.held.of(t.from)
	if err := t.answer(t.had); err != nil {
		return err
	}
	var group sync.WaitGroup
	var unstored, unheard error // a write that failed, and an answer that did
	group.Go(func() {
		for one := range t.taken {
			// What was read is on its way to the disk, with the marks by which a start
			// knows it: it is noted as well where nobody can be told of it any more.
			if unstored == nil {
				unstored = t.settle(ctx, one)
			}
			if unstored == nil && unheard == nil && !one.all() {
				unheard = t.answer(one.end)
			}
			if unstored != nil || unheard != nil {
				_ = t.conn.SetReadDeadline(time.Unix(1, 0)) // no more is read
			}
			if one.buf.Cap() > intakeBuffer {
				one.buf = new(bytes.Buffer)
			}
			t.buffers <- one.buf
		}
	})
	err := t.read(ctx)
	close(t.taken)
	group.Wait()
	if failed := errors.Join(unstored, unheard); failed != nil {
		return failed
	}
	return err
}

// waitReader knows when it last waited for bytes. All that the node had said by
// then had been read, so what comes after was said after that. When bytes are read
// tells less: while the disk is slow, what stands in the sockets grows old.
type waitReader struct {
	io.Reader
	since time.Time // when the last read that waited began
}

func (w *waitReader) Read(b []byte) (int, error) {
	began := time.Now()
	n, err := w.Reader.Read(b)
	if time.Since(began) >= arrivalsWaited {
		w.since = began
	}
	return n, err
}

// read appends shipments to the journal, each with the mark that says so.
func (t *intake) read(ctx context.Context) error {
	var batch journal.Batch
	var before journal.Commit
	conn := &waitReader{Reader: t.conn}
	for {
		buf := <-t.buffers
		var shipped shipment
		err := t.s.guard(viaReplica, func() (err error) { shipped, err = readShipment(conn, buf); return err }, "node", t.from.node)
		if err != nil {
			return err
		}
		one := taken{shipment: shipped, buf: buf, since: conn.since}
		if !one.all() {
			t.reads()
			if err := t.s.gate.waitForNode(ctx); err != nil {
				return err
			}
			if err := t.s.guard(viaReplica, func() error { return t.fill(&batch, shipped) }, "node", t.from.node); err != nil {
				return err
			}
			// Its mark says that all before it is there as well.
			if one.commit, err = t.s.journal.AppendAfter(ctx, before, &batch, nil); err != nil {
				return err
			}
			if batch.Len() > 0 {
				before = one.commit
			}
		}
		t.taken <- one
	}
}

// reads says that a shipment came.
func (t *intake) reads() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unsettled++
	t.stream.hears(true)
	t.stream.stores(true)
}

// stores says that one is durable.
func (t *intake) stores() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unsettled--
	t.stream.hears(true)
	t.stream.stores(t.unsettled > 0)
}

// hasAll says that all is here of which the node said, after since, that there is
// no more. There may be more by now: a busy node's next shipment was read before
// this node's disk had the last one.
func (t *intake) hasAll(since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stream.has(since, t.unsettled > 0)
}

// fill makes a batch of a shipment's lines as this node stores them; where there
// are none, there is no mark.
func (t *intake) fill(batch *journal.Batch, shipped shipment) error {
	batch.Reset()
	if shipped.count == 0 {
		return nil
	}
	err := journal.BlockOf(shipped.first, shipped.count, shipped.payload).Each(func(_ uint64, r journal.Record) bool {
		r.Input = r.Input&^viaOther | viaOther
		batch.Add(r)
		return true
	})
	if err != nil {
		return err
	}
	if batch.Len() != shipped.count {
		return fmt.Errorf("%d lines in a shipment of %d", batch.Len(), shipped.count)
	}
	mark := markOf(t.from.node, progress{t.from.journal, shipped.end}, !t.begun)
	mark.Time = time.Now().UnixNano()
	batch.Add(mark)
	t.begun = true
	return nil
}

// settle waits until a shipment is durable, and notes that. Its error is that it is
// not.
func (t *intake) settle(ctx context.Context, one taken) error {
	// Whatever comes behind a shipment says that it is on the sender's disk.
	if t.newest != nil && one.first >= t.newest.end {
		t.s.recent.confirm(t.newest)
	}
	t.newest.over()
	t.newest = nil
	if one.all() {
		t.hasAll(one.since)
		return nil
	}
	if err := one.commit.Wait(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	t.s.metrics.replicated.Add(float64(one.count))
	if one.first < t.had {
		t.s.recent.anew()
		t.had = 0
	}
	t.newest = &shipped{end: one.end, lines: make([]shippedLine, 0, one.count)} // fill counted them
	if err := journal.BlockOf(one.first, one.count, one.payload).Each(func(_ uint64, r journal.Record) bool {
		t.newest.add(t.s.recent, r) // for the clients that send them again
		return true
	}); err != nil {
		return err
	}
	t.doubled(t.s.recent.doubt(t.newest))
	t.s.held.set(t.from, one.end)
	t.stores()
	return nil
}

// doubled counts lines that are here twice.
func (t *intake) doubled(lines int) { t.s.tellDoubled(lines, "node", t.from.node) }

// answer says that all before next are on this node's disk.
func (t *intake) answer(next uint64) error {
	_ = t.conn.SetWriteDeadline(time.Now().Add(replicaSilence))
	return t.s.guard(viaReplica, func() error {
		_, err := t.conn.Write(binary.LittleEndian.AppendUint64(nil, next))
		return err
	}, "node", t.from.node)
}

// tellDoubled counts lines that are here twice, and says so, and of whom.
func (s *Server) tellDoubled(lines int, of string, name any) {
	if lines == 0 {
		return
	}
	s.doubled.Add(uint64(lines))
	s.metrics.doubled.Add(float64(lines))
	s.log.Warn("lines are here twice: they were stored, here or by another node, and their senders, which were not told, sent them again",
		of, name, "lines", lines)
}

package logrelay

import (
	"context"
	"time"

	"holdfast/logrelay/journal"
)

// idleAfter is after how long without a frame a connection gives back the memory
// that a burst took: there are thousands of them.
const idleAfter = 10 * time.Second

// deadline bounds the wait for what comes next, where something ends with it.
func (c *relpConn) deadline(ctx context.Context) {
	switch now := time.Now(); {
	case len(c.heldTxnrs) > 0:
		c.readBy(ctx, c.decideBy) // however many bytes come meanwhile
	case cap(c.buf) > firstBuffer && now.Sub(c.idleFrom) > idleAfter/2:
		c.idleFrom = now
		c.readBy(ctx, now.Add(idleAfter))
	}
}

// readBy sets the deadline of reads, unless the session ends: that has set one
// in the past.
func (c *relpConn) readBy(ctx context.Context, at time.Time) {
	_ = c.conn.SetReadDeadline(at)
	if ctx.Err() != nil {
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// quiet acts on a deadline that passed: nothing follows that would decide about
// frames that are held, and an idle client keeps no memory.
func (c *relpConn) quiet(ctx context.Context) {
	c.readBy(ctx, time.Time{})
	if len(c.heldTxnrs) > 0 {
		c.judged(overdue)
	}
	c.idleFrom = time.Time{}
	if len(c.buf) == 0 {
		c.buf, c.filled = make([]byte, 0, firstBuffer), false
	}
	if c.batch.Len() == 0 {
		c.batch = journal.Batch{}
	}
}

// bounded is the judgement of frames that are held: when they take as much as
// goes into one append, it is not waited for.
func (c *relpConn) bounded(j judgement) judgement {
	if len(c.heldTxnrs) == 1 {
		c.decideBy = time.Now().Add(decideWithin)
	}
	if j == open && c.held.Size() >= batchBytes {
		return overdue
	}
	return j
}

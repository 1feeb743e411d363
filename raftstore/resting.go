package raftstore

import (
	"context"
	"io"
	"time"
)

// All servers take the digest of their states after the same entry, so at the same
// time, and nobody waits for it but the leader's comparison. So it rests three
// times as long as it works: what clients ask for would wait otherwise, a tenth of
// a second with 50,000 keys. Of a state for which that would take too long the rest
// is taken without: the leader waits for ten seconds.
const (
	restFactor = 3
	restInAll  = 2 * time.Second
)

// restingWriter rests before each write, in proportion to the time since the write
// before: what it writes was made meanwhile. It ends with its context.
type restingWriter struct {
	ctx  context.Context
	to   io.Writer
	work time.Time     // when the work on what is written next began
	left time.Duration // how long it may rest yet
}

func newRestingWriter(ctx context.Context, to io.Writer) *restingWriter {
	return &restingWriter{ctx: ctx, to: to, work: time.Now(), left: restInAll}
}

func (r *restingWriter) Write(p []byte) (int, error) {
	rest := min(restFactor*time.Since(r.work), r.left)
	r.left -= rest
	if !sleep(r.ctx, rest) || r.ctx.Err() != nil {
		return 0, r.ctx.Err()
	}
	r.work = time.Now()
	return r.to.Write(p)
}

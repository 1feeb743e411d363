package logrelay

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/logrelay/journal"
)

// promises are writes that nobody waits for: of UDP and unix sockets, which
// can't be held back. They count what the disk refused. They belong to one
// goroutine.
type promises struct {
	lost prometheus.Counter
	list []promise // few: all lines of one write of the journal are one
	// patience is for how long lines wait for room in the journal; 0: as long as
	// it takes. stuck: some waited in vain, and the next don't wait.
	patience time.Duration
	stuck    bool
}

// unixPatience is for how long a socket of this node is not read while the disk
// stands still. Its senders wait for that, in the midst of what they do: all
// programs of the node, where it is /dev/log.
const unixPatience = time.Second

type promise struct {
	commit journal.Commit
	lines  int
}

// add notes lines that are on their way to the disk, and counts those before
// that did not get there.
func (p *promises) add(commit journal.Commit, lines int) {
	if n := len(p.list); n > 0 && p.list[n-1].commit == commit {
		p.list[n-1].lines += lines
		return
	}
	p.settle()
	p.list = append(p.list, promise{commit, lines})
}

// settle counts what is decided.
func (p *promises) settle() {
	for len(p.list) > 0 {
		ended, err := p.list[0].commit.Done()
		if !ended {
			return
		}
		if err != nil {
			p.lost.Add(float64(p.list[0].lines))
		}
		p.list = append(p.list[:0], p.list[1:]...)
	}
}

// end waits for what is not decided, for a while.
func (p *promises) end() {
	ctx, cancel := context.WithTimeout(context.Background(), lingerFor)
	defer cancel()
	for _, one := range p.list {
		_ = one.commit.Wait(ctx) // settle looks at what became of it
	}
	p.settle()
}

// put appends a batch that nobody waits for, and empties it. While the disk stands
// still, it blocks when the journal has no more room, and so bounds the memory: by
// UDP the socket's buffer then fills, and what that has no room for the kernel
// throws away and counts (see overflowed); who writes to a socket of this node waits no longer than
// p.patience. What the journal does not take, and all after Server.ending, is lost,
// and counted.
func (s *Server) put(batch *journal.Batch, via uint8, p *promises) {
	if batch.Len() == 0 {
		return
	}
	commit, room := s.journal.TryAppend(batch)
	if !room && !p.stuck {
		commit, room = s.waitForRoom(batch, p.patience)
	}
	if p.stuck = !room; room {
		p.add(commit, batch.Len())
	} else {
		p.lost.Add(float64(batch.Len()))
	}
	s.metrics.input(via).took(batch.Len(), batch.Size())
	batch.Reset()
}

// waitForRoom appends a batch once the journal has room for it; false: it had none
// in time.
func (s *Server) waitForRoom(batch *journal.Batch, patience time.Duration) (journal.Commit, bool) {
	ctx := s.ending
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	commit, err := s.journal.Append(ctx, batch) // it has less than a block at most
	return commit, err == nil
}

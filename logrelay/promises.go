package logrelay

import (
	"context"
	"time"

	"holdfast/logrelay/journal"
)

// promises are writes that nobody waits for: of UDP and unix sockets, which
// can't be held back. They count what the disk refused, and what the journal had no
// room for. They belong to one goroutine.
type promises struct {
	s    *Server
	via  uint8
	list []promise // few: all lines of one write of the journal are one
	// patience is for how long lines wait for room in the journal; 0: as long as
	// it takes. stuck: some waited in vain, and the next don't wait.
	patience time.Duration
	stuck    bool
	untold   int // lines that were lost for want of room, and of which the log has no word
}

// unixPatience is for how long a socket of this node is not read while the disk
// stands still. Its senders wait for that, in the midst of what they do: all
// programs of the node, where it is /dev/log. rsyslog's queues wait as long for room
// (queue.timeoutenqueue).
const unixPatience = 2 * time.Second

func (s *Server) newPromises(via uint8, patience time.Duration) promises {
	return promises{s: s, via: via, patience: patience}
}

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
			p.s.metrics.lost[p.via].Add(float64(p.list[0].lines))
		}
		p.list = append(p.list[:0], p.list[1:]...)
	}
}

// end waits for what is not decided, for a while, and no longer than until
// Server.ending: what the journal has is then written by its own end.
func (p *promises) end() {
	ctx, cancel := context.WithTimeout(p.s.ending, lingerFor)
	defer cancel()
	for _, one := range p.list {
		_ = one.commit.Wait(ctx) // settle looks at what became of it
	}
	p.settle()
	for _, one := range p.list {
		p.s.lastLosses.leave(one.lines)
	}
	p.tell()
}

// tell has the log say how many lines were lost for want of room: a disk that is
// slow, or stands still for less than stuckAfter, is no condition.
func (p *promises) tell() {
	if p.untold > 0 {
		p.s.log.Warn("lines that no sender keeps are lost: the journal had no room for them in time, since its disk is slow or stood still",
			"input", inputName(p.via), "lines", p.untold)
		p.untold = 0
	}
}

// put appends a batch that nobody waits for, and empties it. While the disk stands
// still, it blocks when the journal has no more room, and so bounds the memory: by
// UDP the socket's buffer then fills, and what that has no room for the kernel
// throws away and counts (see overflowed); who writes to a socket of this node waits
// no longer than p.patience. What the journal does not take, and all after
// Server.ending, is lost, counted, and told of when there is room again, or at the
// end.
func (p *promises) put(batch *journal.Batch) {
	if batch.Len() == 0 {
		return
	}
	commit, room := p.s.journal.TryAppend(batch)
	if !room && !p.stuck {
		commit, room = p.s.waitForRoom(batch, p.patience)
	}
	if p.stuck = !room; room {
		p.add(commit, batch.Len())
		p.tell()
	} else {
		p.s.metrics.lost[p.via].Add(float64(batch.Len()))
		p.untold += batch.Len()
	}
	p.s.metrics.input(p.via).took(batch.Len(), batch.Size())
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

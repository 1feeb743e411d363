package logrelay

import (
	"fmt"
	"maps"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// backlog says how much of the journal is kept for a target that does not take
// its lines.
type backlog struct {
	most int64 // bytes; 0: what the disk has room for
	wait bool  // keep it though the disk is short: files go first, and at last senders wait
}

// Policies about lines that a target has not taken when the disk is short;
// policyWait is the other.
const policyDrop = "drop"

// maxBacklogMiB is 1 TiB.
const maxBacklogMiB = 1 << 20

const (
	conditionBacklog = "logs.backlog." // and the target's name

	// shortMargin is how many percent before files are removed, or senders
	// held back, backlogs are let go: nobody else is to pay for a dead target.
	shortMargin = 2.0
)

func (d *decoder) backlog(key string, f forwardSection) backlog {
	b := backlog{most: int64(d.bounded(key+".backlog_mib", f.BacklogMiB, 0, maxBacklogMiB)) << 20, wait: f.Policy == policyWait}
	if f.Policy != "" && f.Policy != policyDrop && f.Policy != policyWait {
		d.errorf(key+".backlog_policy", "%q is no policy: want %s or %s", f.Policy, policyDrop, policyWait)
	}
	return b
}

// shortBelow is the free part of the journal's disk, in percent, below which
// backlogs are let go.
func (s *Server) shortBelow() float64 {
	return max(s.settings.rotate.free, 100-stopReadingAt) + shortMargin
}

// bound lets go what is more than is kept for targets, the oldest first and in
// whole segments, and measures what waits. free is of the journal's disk, in
// percent. It belongs to one goroutine.
//
// The newest replay_mib are never let go: the journal keeps them anyway. Nor is
// what it keeps for an output that is not let go, such as the files.
func (s *Server) bound(j *journal.Journal, free float64) {
	short := free < s.shortBelow()
	s.short.Store(short)
	s.mu.Lock()
	outputs := maps.Clone(s.outputs)
	s.mu.Unlock()
	kept := keptAnyway(j, outputs)
	for name, o := range outputs {
		if o.backlog != nil {
			s.boundOne(j, name, o, min(kept, o.backlog.from(j, s.settings.replay, short)), short)
		}
		s.metrics.waitingBytes.WithLabelValues(name).Set(float64(j.Behind(o.cursor.Next())))
	}
}

// keptAnyway is the first record that the journal keeps for an output of which
// nothing is let go.
func keptAnyway(j *journal.Journal, outputs map[string]*outputState) uint64 {
	kept := j.End()
	for _, o := range outputs {
		if o.backlog == nil || o.backlog.wait && o.backlog.most == 0 {
			kept = min(kept, o.cursor.Next())
		}
	}
	return kept
}

// mayReplay tells why lines from a record on can't be sent to a target once more:
// bound would let them go at once.
func (s *Server) mayReplay(j *journal.Journal, o *outputState, outputs map[string]*outputState, from uint64) error {
	if o.backlog == nil {
		return nil
	}
	least := min(keptAnyway(j, outputs), o.backlog.from(j, s.settings.replay, s.short.Load()))
	if from >= least {
		return nil
	}
	since := "the last lines"
	if at, ok := timeOf(j, least); ok {
		since = at.Format(time.RFC3339Nano)
	}
	return fmt.Errorf("lines before %s are kept for no target now (logs.replay_mib, backlog_mib, and what is free on the disk): ask for those from then on, or make room", since)
}

// from is the first record that is kept for a target.
func (b *backlog) from(j *journal.Journal, replay int64, short bool) uint64 {
	switch {
	case short && !b.wait:
		return j.Newest(replay)
	case b.most > 0:
		return j.Newest(max(b.most, replay))
	}
	return 0
}

func (s *Server) boundOne(j *journal.Journal, name string, o *outputState, from uint64, short bool) {
	next := o.cursor.Next()
	lines := j.Lines(next, from) // before the journal forgets them
	if lines == 0 {
		if o.goal > 0 && next >= o.goal {
			o.goal, o.gone = 0, 0
			s.board.Clear(conditionBacklog + name)
			s.log.Info("the target has all lines that came since some were let go", "target", name)
		}
		return
	}
	last := "an unknown time"
	if at, ok := timeOf(j, from); ok {
		last = at.Format(time.RFC3339)
	}
	if err := o.cursor.Commit(from); err != nil {
		s.log.Error("lines that a target does not take can't be let go; tried again", "target", name, "error", err)
		return
	}
	o.gone += lines
	o.goal = j.End()
	s.metrics.letGo.WithLabelValues(name).Add(float64(lines))
	why := fmt.Sprintf("it kept more than %d MiB (logs.forward.%s.backlog_mib)", max(o.backlog.most, s.settings.replay)>>20, name)
	if short && !o.backlog.wait {
		why = fmt.Sprintf("less than %.0f %% of the disk of %s are free", s.shortBelow(), s.dir())
	}
	s.board.Raise(conditionBacklog+name, health.Error, fmt.Sprintf(
		"target %s does not take its lines, and %d of them are kept for it no more, all that were received before %s: %s; the hosts' files have them",
		name, o.gone, last, why))
	s.log.Error("lines that a target has not taken are kept for it no more", "target", name, "lines", lines, "before", last, "why", why)
}

// letsReplicaGo is the first of the lines that are still kept for another node,
// which has not taken them: no acknowledged line that is in the files is to go for
// the others. The newest replay_mib stay, but on a disk that is nearly full.
func (s *Server) letsReplicaGo(j *journal.Journal, cursor *journal.Cursor) func() uint64 {
	return func() uint64 {
		switch {
		case s.gate.isFull():
			return j.End()
		case s.short.Load() && j.Behind(cursor.Next()) > s.settings.replay:
			return j.Newest(s.settings.replay)
		}
		return 0
	}
}

package logrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/logrelay/journal"
)

// Targets get a line from the node that took it. When that is lost for good with
// its disk, what it had not forwarded is in the journals of others alone, and an
// admin has it sent from there: by a connection and a cursor of its own, beside
// this node's lines. Nobody but the admin knows that a node does not come back.

const (
	conditionReplay = "logs.replay." // and the target's name
	replayPrefix    = "replay-"      // of the file that has the order, over restarts
	replayCursor    = "re-"          // of its cursor
	replayLook      = 200 * time.Millisecond
	gaveUpFor       = 24 * time.Hour // for which it is said that an order was given up
	leastGrowth     = 256 << 20      // bytes by which the journal may grow for a target that refuses
)

// lostOrder is whose lines a target is to get.
type lostOrder struct {
	Of    string `json:"of"`    // the node's name, as marks have it
	Since int64  `json:"since"` // when a line was received at the earliest, in nanoseconds since 1970
	Until uint64 `json:"until"` // number behind the last that is meant
}

// lostLines sends a target lines that another node took. run belongs to one
// goroutine; the other methods may be called from any.
type lostLines struct {
	target  string
	path    string // of the order's file
	journal *journal.Journal
	forward func(*journal.Cursor, *lostOrder) *forward
	log     *slog.Logger
	board   *health.Board
	pause   time.Duration // between two tries
	// tooMuch tells whether no more may be kept for a target that refuses.
	tooMuch func() bool
	wake    chan struct{}

	began atomic.Int64 // bytes of the journal when the order was given, or the relay started

	mu    sync.Mutex
	order *lostOrder // under way; nil: none
}

// newLostLines reads the order that was under way.
func (s *Server) newLostLines(j *journal.Journal, t target) (*lostLines, error) {
	l := &lostLines{
		target: t.name, path: filepath.Join(s.dir(), replayPrefix+t.name), journal: j, board: s.board, pause: lastRetry,
		log: s.log.With("target", t.name), wake: make(chan struct{}, 1),
		forward: func(c *journal.Cursor, o *lostOrder) *forward {
			return &forward{
				target: t, pool: pool{size: len(t.addresses), least: s.returnAfter}, dialer: s.dialer, tls: s.tls[1], journal: j, cursor: c,
				names: s.names(), rules: s.newRules(), metrics: s.metrics.output(t.name), log: s.log.With("target", t.name, "of", o.Of), bugs: s.bugs, lost: o,
			}
		},
	}
	l.tooMuch = func() bool { return s.gate.isFull() || j.Bytes() > l.began.Load()+max(s.settings.replay, leastGrowth) }
	l.began.Store(j.Bytes())
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		l.order = &lostOrder{}
		err = json.Unmarshal(b, l.order)
	}
	if err != nil {
		return nil, fmt.Errorf("logrelay: %s: %w; remove it, and type the replay again", l.path, err)
	}
	l.wake <- struct{}{}
	return l, nil
}

// keeps are the cursors that it needs.
func (l *lostLines) keeps() []string {
	if l.underWay() == nil {
		return nil
	}
	return []string{replayCursor + l.target}
}

func (l *lostLines) underWay() *lostOrder {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.order
}

// begin has the target get the lines of a node that were received since then,
// and returns how many there are.
func (l *lostLines) begin(of string, since time.Time) (lines uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.order != nil {
		return 0, fmt.Errorf("%s is getting the lines of %s: wait until it has them", l.target, l.order.Of)
	}
	order := &lostOrder{Of: of, Since: since.UnixNano(), Until: l.journal.End()}
	from := order.Until
	cursor, err := l.journal.Cursor(replayCursor+l.target, false) // nothing is trimmed from here on
	if err != nil {
		return 0, err
	}
	defer func() {
		if l.order == nil {
			err = errors.Join(err, cursor.Remove())
		}
	}()
	reader := l.journal.Glance(0)
	defer reader.Close()
	last := uint64(0)
	others := map[string]bool{}
	for {
		block, ok, err := reader.TryNext()
		if err != nil {
			return 0, err
		}
		if !ok || block.First >= order.Until {
			break
		}
		wants := order.of(block, others)
		if err := block.Each(func(number uint64, r journal.Record) bool {
			if wants(number, r) {
				from, last = min(from, block.First), number+1
				lines++
			}
			return true
		}); err != nil {
			return 0, err
		}
	}
	if lines == 0 {
		return 0, fmt.Errorf("the journal has no lines of %s of %s or later; it has lines of %q", of, since.Format(time.RFC3339), sorted(others))
	}
	order.Until = last
	b, err := json.Marshal(order)
	if err == nil {
		err = cursor.Commit(from)
	}
	if err == nil {
		err = durable.Replace(l.path, b, 0o600)
	}
	if err != nil {
		return 0, err
	}
	l.order = order
	l.began.Store(l.journal.Bytes())
	l.board.Clear(conditionReplay + l.target) // of one that was given up
	l.wake <- struct{}{}                      // nobody else fills it while there is no order
	return lines, nil
}

// of judges a block's lines: those of the node stand before the mark that names
// it. Nodes that have marks are noted, unless others is nil.
func (o *lostOrder) of(block journal.Block, others map[string]bool) func(number uint64, r journal.Record) bool {
	type mark struct {
		number uint64
		ours   bool
	}
	var marks []mark
	_ = block.Each(func(number uint64, r journal.Record) bool { // who reads the block says what is wrong with it
		if r.Input != viaMark {
			return true
		}
		if node, _, ok := parseMark(r.Data); ok {
			marks = append(marks, mark{number, node == o.Of})
			if others != nil {
				others[node] = true
			}
		}
		return true
	})
	return func(number uint64, r journal.Record) bool {
		if r.Input == viaMark || r.Input&viaOther == 0 || number >= o.Until || r.Time < o.Since {
			return false
		}
		for len(marks) > 0 && marks[0].number < number {
			marks = marks[1:]
		}
		return len(marks) > 0 && marks[0].ours
	}
}

// ownLine tells whether this node forwards a line: others forward what came to
// them.
func ownLine(_ uint64, r journal.Record) bool { return r.Input != viaMark && r.Input&viaOther == 0 }

// wants judges a block's lines.
func (f *forward) wants(block journal.Block) func(number uint64, r journal.Record) bool {
	if f.lost == nil {
		return ownLine
	}
	return f.lost.of(block, nil)
}

// run does what is ordered until ctx ends; what is under way then goes on at the
// next start.
func (l *lostLines) run(ctx context.Context) {
	var told <-chan time.Time // long enough that an order was given up; nil: none was
	for {
		select {
		case <-l.wake:
			told = nil
		case <-told:
			l.board.Clear(conditionReplay + l.target)
			continue
		case <-ctx.Done():
			return
		}
		for {
			err := l.send(ctx, l.underWay())
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				l.board.Clear(conditionReplay + l.target)
				break
			}
			if l.tooMuch() {
				if !l.giveUp(ctx, err) {
					return
				}
				told = time.After(gaveUpFor)
				break
			}
			l.board.Raise(conditionReplay+l.target, health.Warning, fmt.Sprintf(
				"%s does not get the lines of %s that an admin ordered, which stay in the journal: %v", l.target, l.underWay().Of, err))
			select {
			case <-ctx.Done():
				return
			case <-time.After(l.pause):
			}
		}
	}
}

// send sends the lines, until the target has all of them, refuses, or ctx ends.
func (l *lostLines) send(ctx context.Context, order *lostOrder) error {
	cursor, err := l.journal.Cursor(replayCursor+l.target, false)
	if err != nil {
		return err
	}
	sending, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- l.forward(cursor, order).run(sending, func() {}) }()
	look := time.NewTicker(replayLook)
	defer look.Stop()
	for cursor.Next() < order.Until {
		select {
		case <-look.C:
			continue
		case err = <-ended:
		}
		if err == nil {
			err = errors.New("the connection ended")
		}
		return err
	}
	stop()
	<-ended // the target has what was meant
	l.log.Info("the target has the lines of another node", "of", order.Of)
	return l.end()
}

// end forgets the order.
func (l *lostLines) end() error {
	if err := os.Remove(l.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cursor, err := l.journal.Cursor(replayCursor+l.target, true)
	if err == nil {
		err = cursor.Remove()
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.order = nil
	return nil
}

// giveUp ends an order that the target refuses, since the journal has grown by
// more than it keeps anyway. While the disk refuses that, it is tried again; false:
// ctx ended meanwhile.
func (l *lostLines) giveUp(ctx context.Context, why error) bool {
	of := l.underWay().Of
	for {
		err := l.end()
		if err == nil {
			break
		}
		l.board.Raise(conditionReplay+l.target, health.Error, fmt.Sprintf(
			"%s does not get all lines of %s that an admin ordered (%v), and the order can't be ended: %v; tried again", l.target, of, why, err))
		select {
		case <-ctx.Done():
			return false
		case <-time.After(l.pause):
		}
	}
	l.board.Raise(conditionReplay+l.target, health.Error, fmt.Sprintf(
		"%s did not get all lines of %s that an admin ordered, and they are kept for it no more: %v; type the replay again when it takes lines", l.target, of, why))
	l.log.Error("the lines of another node are kept for the target no more", "of", of, "error", why)
	return true
}

// replay is ReplayOf, or Replay for this node's own lines.
func (s *Server) replay(output, of string, since time.Time) (lines uint64, err error) {
	if of == "" || safeName(of) == safeName(s.config.Node) {
		return s.Replay(output, since)
	}
	return s.ReplayOf(output, of, since)
}

// ReplayOf sends a target the lines that another node took from a time on, as far
// as they are on this one, and returns how many these are. They are sent beside
// this node's own, and over restarts.
func (s *Server) ReplayOf(output, node string, since time.Time) (lines uint64, err error) {
	s.mu.Lock()
	l := s.lost[output]
	s.mu.Unlock()
	if l == nil {
		return 0, fmt.Errorf("%q is no target of logs.forward, or the log relay is not running yet", output)
	}
	if lines, err = l.begin(safeName(node), since); err != nil {
		return 0, err
	}
	s.log.Info("an admin has a target get the lines of another node", "output", output, "of", node, "lines", lines)
	return lines, nil
}

func sorted(set map[string]bool) (list []string) {
	for name := range set {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

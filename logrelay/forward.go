package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/health"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// Limits of forwarding.
const (
	dialWithin    = 10 * time.Second
	answersLimit  = 90 * time.Second // librelp's
	commitEvery   = time.Second
	announceEvery = 10 * time.Second // how often a target hears of lines that a limit left out
	sendBytes     = 64 << 10

	conditionFailover = "logs.failover." // and the target's name
)

// forward sends every line to another relay, at least once: by RELP the cursor
// moves behind what was acknowledged, by TCP behind what the target's kernel
// has. It belongs to one goroutine.
type forward struct {
	target  target
	pool    pool
	dialer  dialer
	tls     *tls.Config // to servers of our cluster
	journal *journal.Journal
	cursor  *journal.Cursor
	names   *names
	rules   *rules
	log     *slog.Logger
	board   *health.Board
	bugs    *bugs
	metrics *outputMetrics
	lost    *lostOrder // only these lines, of another node; nil: this node's own

	link      *link
	probe     chan *link // where the first address's connection comes, or nil if it fails; nil: none is tried
	done      uint64     // all before it are there
	committed time.Time
	announced time.Time
	untold    bool // lines were left out of which the target was to be told, and was not
	out       []byte
	line      line

	// sick: this node's disk refused. It is well again when something was read
	// behind stuck, or the end was reached, and the cursor could be moved. read is
	// behind the last block that was read by this connection.
	sick        bool
	read, stuck uint64
}

// run sends until ctx ends or the target fails. A first address that is well
// again is gone back to. After a fault of this node's disk a connection alone is
// no sign that lines are taken.
func (f *forward) run(ctx context.Context, well func()) error {
	link, err := f.connect(ctx)
	for err == nil && link != nil {
		if !f.sick {
			well()
		}
		if f.pool.at == 0 {
			f.board.Clear(conditionFailover + f.target.name)
		}
		f.log.Info("forwarding", "address", link.address)
		link, err = f.serve(ctx, link, well)
	}
	return err
}

// connect tries the addresses, beginning with the one whose turn it is.
func (f *forward) connect(ctx context.Context) (*link, error) {
	var failed error
	for range f.target.addresses {
		address := f.target.addresses[f.pool.turn(time.Now())]
		link, err := f.dial(ctx, address)
		if err == nil {
			return link, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		f.gaveUp(address, err)
		failed = errors.Join(failed, err)
	}
	return nil, failed
}

// gaveUp passes the turn on from an address that failed.
func (f *forward) gaveUp(address string, err error) {
	f.pool.failed(time.Now())
	if f.pool.size > 1 {
		f.log.Warn("an address of the target fails; the next is tried", "address", address, "error", err)
		f.board.Raise(conditionFailover+f.target.name, health.Warning, fmt.Sprintf(
			"lines for %s go to another address than %s, which is tried again: %v", f.target.name, f.target.addresses[0], oneLine(err)))
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// serve sends over a connection until ctx ends, it fails, or the first address
// is well again: next is the connection to that.
func (f *forward) serve(ctx context.Context, l *link, well func()) (next *link, err error) {
	f.link, f.out, f.done, f.announced, f.untold = l, f.out[:0], f.cursor.Next(), time.Now(), false
	f.read = f.done
	f.rules.begin()
	defer func() { _ = f.guard(l.address, l.close) }() // over TLS it writes
	serving, stop := l.watch(ctx, func(read func() error) error { return f.guard(l.address, read) })
	defer func() {
		stop()
		f.endProbe()
	}()
	reader := f.journal.Reader(f.done)
	defer reader.Close()
	next, err = f.send(serving, reader, well)
	if ctx.Err() != nil {
		f.done = l.settle(f.done)
	}
	if lost := context.Cause(serving); err == nil && next == nil && ctx.Err() == nil {
		err = lost
	}
	if err != nil && ctx.Err() == nil && !errors.As(err, new(ownError)) {
		f.gaveUp(l.address, err)
		err = fmt.Errorf("%s: %w", l.address, err)
	}
	// From the last commit on they are judged once more, and told of.
	if f.done > f.cursor.Next() && !f.untold {
		err = errors.Join(err, own(f.cursor.Commit(f.done)))
	}
	if errors.As(err, new(ownError)) {
		f.sick, f.stuck = true, f.read
	}
	return next, err
}

// ownError is a fault of this node's disk: no address of the target is to blame,
// and none other would do better.
type ownError struct{ error }

func (e ownError) Error() string {
	return "the journal of this node, not the target: " + e.error.Error()
}
func (e ownError) Unwrap() error { return e.error }

// own says so of an error; nil stays nil.
func own(err error) error {
	if err == nil {
		return nil
	}
	return ownError{err}
}

func (f *forward) send(ctx context.Context, reader *journal.Reader, well func()) (next *link, err error) {
	for {
		idle, cancel := context.WithTimeout(ctx, commitEvery)
		block, err := reader.Next(idle)
		cancel()
		end := false
		if err == nil {
			f.read = block.End()
			err = f.sendBlock(ctx, block)
		} else if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err, end = nil, true
		} else {
			err = own(err)
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		now := time.Now()
		if now.Sub(f.committed) < commitEvery {
			continue
		}
		f.committed = now
		// In this order: whoever dies in between tells of the lines once more.
		if err := f.announce(now); err != nil {
			return nil, err
		}
		if err := f.commit(); err != nil {
			return nil, own(err)
		}
		if f.sick && (end || f.read > f.stuck) {
			f.sick = false
			well()
		}
		if next := f.tryFirst(ctx, now); next != nil {
			return next, nil
		}
	}
}

// tryFirst connects to the first address beside the work, when that is due, and
// returns the connection once there is one.
func (f *forward) tryFirst(ctx context.Context, now time.Time) *link {
	if f.probe == nil && f.pool.due(now) {
		probe := make(chan *link, 1)
		f.probe = probe
		go func() {
			l, _ := f.dial(ctx, f.target.addresses[0]) // why it fails was said when it did
			probe <- l
		}()
	}
	select {
	case l := <-f.probe:
		f.probe = nil
		if l == nil {
			f.pool.still(now)
			return nil
		}
		f.pool.turn(now)
		return l
	default:
		return nil
	}
}

// endProbe ends a try that is under way; its context has ended.
func (f *forward) endProbe() {
	if f.probe == nil {
		return
	}
	if l := <-f.probe; l != nil {
		_ = f.guard(l.address, l.close)
	}
	f.probe = nil
}

// commit moves the cursor behind what is there.
func (f *forward) commit() error {
	f.done = f.link.reached(f.done)
	if f.done <= f.cursor.Next() {
		return nil
	}
	f.pool.took()
	return f.cursor.Commit(f.done)
}

// sendBlock sends a block's lines. RELP lines wait for answers while the
// window is full.
func (f *forward) sendBlock(ctx context.Context, block journal.Block) (err error) {
	from := f.cursor.Next()
	wants := f.wants(block)
	failed := block.Each(func(number uint64, r journal.Record) bool {
		if number < from || ctx.Err() != nil || !wants(number, r) {
			return true
		}
		if f.judge(number, r) {
			err = f.put(number)
		}
		return err == nil
	})
	f.metrics.failed.Add(float64(f.rules.failures()))
	if err = errors.Join(err, own(failed)); err != nil {
		return err
	}
	if err := f.flush(); err != nil || ctx.Err() != nil {
		return err
	}
	if f.target.relp() {
		f.done = block.End()
		return nil
	}
	f.link.mark(block.End())
	return nil
}

// put puts the line behind what is to be sent, and sends when that is enough.
func (f *forward) put(number uint64) error {
	before := len(f.out)
	f.frame(number)
	f.metrics.lines.Inc()
	f.metrics.bytes.Add(float64(len(f.out) - before))
	if len(f.out) >= sendBytes || len(f.link.sent) >= relp.Window {
		return f.flush()
	}
	return nil
}

// announce tells the target how many lines a limit left out, now and then. An
// answer to that moves no cursor: all before f.done is there.
func (f *forward) announce(now time.Time) error {
	if now.Sub(f.announced) < announceEvery {
		return nil
	}
	f.announced = now
	lines := 0
	for _, left := range f.rules.leftOut() {
		f.untold = true
		f.line.announce(left)
		if err := f.put(f.done - 1); err != nil {
			return err
		}
		lines += left.lines
	}
	if lines == 0 {
		return nil
	}
	f.log.Warn("limits left lines out", "output", f.target.name, "lines", lines)
	err := f.flush()
	f.untold = err != nil
	return err
}

// frame puts the line behind what is to be sent.
func (f *forward) frame(number uint64) {
	text := f.render(&f.line)
	if f.target.relp() {
		f.out = f.link.session.AppendLine(f.out, text)
		f.link.sent = append(f.link.sent, number)
		return
	}
	f.out = strconv.AppendInt(f.out, int64(len(text)), 10) // RFC 6587 §3.4.1
	f.out = append(append(f.out, ' '), text...)
}

// guard calls what talks to an address of the target. A panic over that, as of TLS, is a
// bug, and a failure of the address: the lines are sent again. It may be called from
// any goroutine.
func (f *forward) guard(address string, talk func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s", errBug, f.bugs.caught(p, "output "+f.target.name, "address", address))
		}
	}()
	return talk()
}

// answers reads what a target answers.
func (f *forward) answers(l *link) (done uint64, err error) {
	err = f.guard(l.address, func() (err error) {
		done, err = l.answers()
		return err
	})
	return done, err
}

// flush sends, and waits for all answers of RELP.
func (f *forward) flush() error {
	if len(f.out) > 0 {
		err := f.guard(f.link.address, func() error { return f.link.write(f.out) })
		f.out = f.out[:0]
		if err != nil {
			return err
		}
	}
	if !f.target.relp() {
		return nil
	}
	done, err := f.answers(f.link)
	f.done = max(f.done, done)
	return err
}

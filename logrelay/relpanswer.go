package logrelay

import (
	"context"
	"sync"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// mostWaiting is how many lines of a connection may wait for the disks before
// no more are taken: librelp has a window of them, others may have more.
const mostWaiting = 4 * relp.Window

// owed are the answers to frames that were taken together.
type owed struct {
	answers      []byte
	hashes       []uint64 // of the lines that are stored
	doubled      int      // lines that are here twice once these are
	resumed      bool     // some lines were stored before
	lines, bytes int
	commit       journal.Commit
}

// keptAnswers is up to how many bytes the memory of answers is used again.
const keptAnswers = 16 << 10

// owe is what the frame that is taken apart is answered with. An idle client
// has none.
func (c *relpConn) owe() *owed {
	if c.owed == nil {
		var ok bool
		if c.owed, ok = c.s.owed.Get().(*owed); !ok {
			c.owed = new(owed)
		}
	}
	return c.owed
}

func (c *relpConn) free(o *owed) {
	if cap(o.answers) > keptAnswers {
		return
	}
	*o = owed{answers: o.answers[:0], hashes: o.hashes[:0]}
	c.s.owed.Put(o)
}

// line adds a line that is to be stored.
func (o *owed) line(txnr uint32, hash uint64) {
	o.hashes = append(o.hashes, hash)
	o.answers = relp.AppendOK(o.answers, txnr)
}

// waiting is what a connection's client waits for, the oldest first. A goroutine
// answers it, which lives as long as there is some: so the next lines are read,
// and on their way to the disks, while those before are.
type waiting struct {
	mu      sync.Mutex
	list    []*owed
	lines   int
	running bool
	err     error     // after which nothing is answered
	turn    sync.Cond // of mu: something was answered, or failed
}

// await has the client answered once all is durable.
func (c *relpConn) await(ctx context.Context, o *owed) {
	w := &c.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	w.list = append(w.list, o)
	w.lines += o.lines
	if !w.running {
		w.running = true
		go c.answerAll(ctx)
	}
}

// settle waits until less than so many lines wait for the disks, with 0 until
// nothing does. Its error is that of an answer: nothing behind it is answered.
func (c *relpConn) settle(most int) error {
	w := &c.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.running && (w.lines >= most || most == 0) {
		w.turn.Wait()
	}
	return w.err
}

// pending tells whether the client waits for an answer.
func (c *relpConn) pending() bool {
	c.waiting.mu.Lock()
	defer c.waiting.mu.Unlock()
	return len(c.waiting.list) > 0
}

// answerAll answers until nothing waits, or an answer fails. That ends the
// connection.
func (c *relpConn) answerAll(ctx context.Context) {
	w := &c.waiting
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.list) > 0 {
		first := w.list[0]
		w.mu.Unlock()
		err := c.durable(ctx, first)
		w.mu.Lock()
		if err == nil {
			// What became durable with it is answered with it.
			n := 1
			for n < len(w.list) && w.list[n].commit.Together(first.commit) && !w.list[n].resumed {
				n++
			}
			list := w.list[:n:n]
			w.mu.Unlock()
			err = c.answer(list)
			w.mu.Lock()
			for i, o := range list {
				w.lines -= o.lines
				c.free(o)
				w.list[i] = nil
			}
			w.list = w.list[n:]
		}
		if err != nil {
			w.err, w.list = err, nil
			c.breakOff()
		}
		w.turn.Broadcast()
	}
	w.list, w.running = nil, false
	w.turn.Broadcast()
}

// breakOff ends the connection: what is not answered comes again.
func (c *relpConn) breakOff() {
	_ = c.s.guard(c.via, c.conn.Close, "client", c.source)
	if tcp := c.tcp(); tcp != nil {
		_ = tcp.Close() // it is open where TLS panicked
	}
}

// durable waits until lines are on all disks that they are to be on, until
// Server.ending at most.
func (c *relpConn) durable(ended context.Context, o *owed) error {
	ctx, cancel := context.WithTimeout(c.s.ending, answerWithin)
	defer cancel()
	if err := o.commit.Wait(ctx); err != nil {
		return err
	}
	end := o.commit.End()
	if o.resumed {
		end = c.s.journal.End()
	}
	return c.reach(ended, end)
}

// reach waits until another node has the lines, if one must. An end that is
// under way does not wait for a node that does not come: what is not answered
// then comes again.
func (c *relpConn) reach(ctx context.Context, end uint64) error {
	waiting, cancel := context.WithTimeout(c.s.ending, answerWithin)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(lingerFor, cancel) })
	defer stop()
	return c.s.replicas.reach(waiting, end)
}

// write sends answers. A panic, of TLS, is a bug that ends the session: what is not
// answered comes again.
func (c *relpConn) write(answers []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.s.bugs.input(c.via, p, "client", c.source)
		}
	}()
	_ = c.conn.SetWriteDeadline(time.Now().Add(answerWithin))
	_, err = c.conn.Write(answers)
	return err
}

// answer answers what is durable.
func (c *relpConn) answer(list []*owed) error {
	answers, lines := list[0].answers, 0
	for i, o := range list {
		if i > 0 {
			answers = append(answers, o.answers...)
		}
		lines += o.lines
		c.s.metrics.input(c.via).took(o.lines, o.bytes)
	}
	list[0].answers = answers // its memory is used again
	c.s.metrics.input(c.via).acked.Add(float64(lines))
	return c.write(answers)
}

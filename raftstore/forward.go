package raftstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
)

// Writes that wait for the leader at the same time share a message. A write that
// finds few messages under way goes at once, so that a lone one waits for nobody;
// the others go together with the next.
const (
	batchesUnderWay = 4
	batchBytes      = 256 << 10 // a longer command goes alone
	batchCommands   = 512       // what servers of all versions take
)

// forwarder brings this server's writes to the leader.
type forwarder struct {
	client  *rpcClient
	ctx     context.Context // ends with the store
	timings timings

	mu   sync.Mutex
	lane *lane // to the leader of the last write
}

// lane is the way to one leader.
type lane struct {
	to *forwarder
	// at is where the leader is, and id which server that is.
	at, id string

	reads rounds        // questions to the leader for an index to read at
	index atomic.Uint64 // the last that it gave

	mu      sync.Mutex
	waiting []*forwarded
	busy    int  // messages under way
	single  bool // the leader is of a version that takes one at a time
}

// forwarded is a write on its way.
type forwarded struct {
	command []byte
	done    chan struct{}
	answer  answer
	err     error // nothing is known of an answer
}

// carry brings a command to the leader and waits for its answer, which is as
// that of pathPropose.
func (f *forwarder) carry(ctx context.Context, at, id string, command []byte) (answer, error) {
	l := f.laneTo(at, id)
	if len(command) > batchBytes || l.takesOne() {
		return f.client.inquire(ctx, at, pathPropose, bytes.NewReader(command))
	}
	w := &forwarded{command: command, done: make(chan struct{})}
	l.enter(w)
	select {
	case <-w.done:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	if w.err != nil {
		return answer{}, w.err
	}
	return w.answer, w.answer.error()
}

func (f *forwarder) laneTo(at, id string) *lane {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lane == nil || f.lane.at != at || f.lane.id != id {
		f.lane = &lane{to: f, at: at, id: id}
	}
	return f.lane
}

// readIndex asks the leader for an index to read at. Reads that wait at the same
// time share a question, but never one that was put before them.
func (f *forwarder) readIndex(ctx context.Context, at, id string) (uint64, error) {
	l := f.laneTo(at, id)
	err := l.reads.join(ctx, func() error {
		ctx, cancel := context.WithTimeout(f.ctx, f.timings.outcome)
		defer cancel()
		index, err := f.client.ask(ctx, at, pathReadIndex, http.NoBody)
		if err == nil {
			l.index.Store(index)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return l.index.Load(), nil // of a later question, maybe, which is no harm
}

func (l *lane) takesOne() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.single
}

// enter queues a write, or sends it if there is room on the lane.
func (l *lane) enter(w *forwarded) {
	l.mu.Lock()
	l.waiting = append(l.waiting, w)
	start := l.busy < batchesUnderWay
	if start {
		l.busy++
	}
	l.mu.Unlock()
	if start {
		go l.drain() // ends when nothing waits, at the latest with the store
	}
}

// drain sends what waits, message after message.
func (l *lane) drain() {
	for {
		batch := l.take()
		if len(batch) == 0 {
			return
		}
		l.send(batch)
		for _, w := range batch {
			close(w.done)
		}
	}
}

// take gives the next message's writes; when there are none, one message less is
// under way.
func (l *lane) take() []*forwarded {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, size := 0, 0
	for n < len(l.waiting) && n < batchCommands && (n == 0 || size+len(l.waiting[n].command) <= batchBytes) {
		size += len(l.waiting[n].command)
		n++
	}
	if n == 0 {
		l.busy--
		return nil
	}
	batch := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	return batch
}

// send has the leader take a message's writes, and notes what became of each.
func (l *lane) send(batch []*forwarded) {
	ctx, cancel := context.WithTimeout(l.to.ctx, l.to.timings.outcome+l.to.timings.transport)
	defer cancel()
	var answers []answer
	err := l.to.client.post(ctx, l.at, pathProposeMany, bytes.NewReader(encodeBatch(batch)), &answers)
	if err == nil && len(answers) != len(batch) {
		err = fmt.Errorf("%s gave %d answers to %d writes", l.at, len(answers), len(batch))
	}
	if errors.Is(err, errNoSuchPath) {
		l.mu.Lock()
		l.single = true
		l.mu.Unlock()
		err = &untouchedError{err}
	}
	for i, w := range batch {
		if w.err = err; err == nil {
			w.answer = answers[i]
		}
	}
}

// encodeBatch puts the length before each command.
func encodeBatch(batch []*forwarded) []byte {
	size := 0
	for _, w := range batch {
		size += binary.MaxVarintLen32 + len(w.command)
	}
	to := make([]byte, 0, size)
	for _, w := range batch {
		to = append(binary.AppendUvarint(to, uint64(len(w.command))), w.command...)
	}
	return to
}

// decodeBatch is the inverse; the commands share data.
func decodeBatch(data []byte) (commands [][]byte, err error) {
	for len(data) > 0 {
		n, size := binary.Uvarint(data)
		if size <= 0 || n > uint64(len(data)-size) || len(commands) == batchCommands {
			return nil, errors.New("it is no batch of commands")
		}
		commands = append(commands, data[size:size+int(n):size+int(n)])
		data = data[size+int(n):]
	}
	return commands, nil
}

// proposeManyHere appends the commands of a message as the leader, all at once,
// and answers when all of them have come to something.
func proposeManyHere(ctx context.Context, h handler, body io.Reader) []answer {
	data, err := io.ReadAll(body)
	var commands [][]byte
	if err == nil {
		commands, err = decodeBatch(data)
	}
	if err != nil { // who sent it counts the answers
		return []answer{answerOf(0, &untouchedError{fmt.Errorf("read the commands: %w", err)})}
	}
	answers := make([]answer, len(commands))
	if len(commands) == 1 {
		answers[0] = answerOf(h.proposeHere(ctx, commands[0]))
		return answers
	}
	var group sync.WaitGroup
	for i, command := range commands {
		group.Go(func() { answers[i] = answerOf(h.proposeHere(ctx, command)) })
	}
	group.Wait()
	return answers
}

// expectant are the servers that wait for a write of theirs to be committed.
type expectant struct {
	mu    sync.Mutex
	count map[string]int // by ID
}

func (d *expectant) begin(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.count == nil {
		d.count = map[string]int{}
	}
	d.count[id]++
}

func (d *expectant) end(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.count[id]--; d.count[id] == 0 {
		delete(d.count, id)
	}
}

func (d *expectant) has(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count[id] > 0
}

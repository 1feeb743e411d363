package logrelay

import (
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"io"
	"slices"
	"time"
)

// Stream is one node's answer to a query.
type Stream struct {
	Node string
	Body io.Reader // frames, a line of JSON each
}

// mergeAhead is how many frames of a node are read before they are wanted.
const mergeAhead = 64

// stream is a Stream that is being merged.
type stream struct {
	node   string
	frames chan Frame
	failed error // valid when frames is closed

	head  *Entry
	upto  time.Time // nothing older comes, but what is late
	busy  time.Time // when it last said that it is looking for lines
	ended bool
	// Of one that is followed.
	late  bool      // it is not waited for
	told  time.Time // when somebody was told of that
	broke bool      // somebody was told of its end
}

// Merge puts the answers of several nodes into one, in order of receipt, with
// what is on two nodes once, and gives each line to emit with the node that had
// it. It reads no further than it emits, so that who is slow holds the nodes
// back, and nothing piles up. It returns when all streams have ended or ctx
// has; broken has the nodes whose answer was not whole, and why. An error is
// emit's, or ctx's.
func Merge(ctx context.Context, from []Stream, emit func(node string, e *Entry) error) (broken map[string]error, err error) {
	return merge(ctx, from, nil, emit)
}

func merge(ctx context.Context, from []Stream, f *follower, emit func(node string, e *Entry) error) (broken map[string]error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wake := make(chan struct{}, 1)
	list := make([]*stream, len(from))
	for i, f := range from {
		list[i] = &stream{node: f.Node, frames: make(chan Frame, mergeAhead)}
		go list[i].read(ctx, f.Body, wake)
	}
	m := merger{list: list, known: map[key]*copies{}, seed: maphash.MakeSeed()}
	patience := time.NewTimer(0)
	defer patience.Stop()
	for {
		m.fill()
		f.caughtUp(list)
		for s := m.next(); s != nil; s = m.next() {
			e := s.head
			s.head = nil
			if !m.seen(s.node, e) {
				if err := emit(s.node, e); err != nil {
					return nil, err
				}
			}
			m.fill()
			f.emitted(list, e)
		}
		now := time.Now()
		again := f.look(list, now)
		if m.next() != nil {
			continue
		}
		if broken, ended := m.ended(); ended {
			return broken, nil
		}
		if !again.IsZero() {
			patience.Reset(again.Sub(now))
		}
		select {
		case <-wake:
		case <-patience.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read hands frames on until the body ends.
func (s *stream) read(ctx context.Context, body io.Reader, wake chan<- struct{}) {
	tell := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	defer tell()
	defer close(s.frames)
	decoder := json.NewDecoder(body)
	for {
		var f Frame
		if err := decoder.Decode(&f); err != nil {
			s.failed = errors.Join(errBroke, err)
			return
		}
		if f.Done {
			return
		}
		select {
		case s.frames <- f:
			tell()
		case <-ctx.Done():
			s.failed = ctx.Err()
			return
		}
	}
}

// merger is the state of a merge, without what blocks.
type merger struct {
	list []*stream
	// The newest lines that were emitted: what comes late from another node is
	// compared with as many.
	seed  maphash.Seed
	known map[key]*copies
	order []key
	at    int
}

// key is what two nodes have in common of one line.
type key struct {
	time   int64
	source string
	line   uint64
}

// copies are how often a line was emitted, and how often each node gave it.
type copies struct {
	emitted int
	nodes   []copied
}

type copied struct {
	node  string
	count int
}

const mergeKnown = 1 << 16

// fill takes what is there until each stream has a line or none is there.
func (m *merger) fill() {
	for _, s := range m.list {
		for s.head == nil && !s.ended {
			more := s.poll()
			if !more {
				break
			}
		}
	}
}

// poll takes a frame, if there is one.
func (s *stream) poll() bool {
	select {
	case f, ok := <-s.frames:
		switch {
		case !ok:
			s.ended = true
		case f.Entry != nil:
			s.head = f.Entry
		case f.Upto != nil:
			s.upto = *f.Upto
		default:
			s.busy = time.Now()
		}
		return true
	default:
		return false
	}
}

// next is the stream with the oldest line, if no other can have an older one.
func (m *merger) next() *stream {
	if len(blocking(m.list)) > 0 {
		return nil
	}
	return oldest(m.list)
}

// oldest is the stream that has the oldest line; nil: none has one.
func oldest(list []*stream) (least *stream) {
	for _, s := range list {
		if s.head != nil && (least == nil || s.head.Time.Before(least.head.Time)) {
			least = s
		}
	}
	return least
}

// blocking are the streams that may have an older line than the oldest that is
// here.
func blocking(list []*stream) (waiting []*stream) {
	least := oldest(list)
	for _, s := range list {
		if least != nil && s.head == nil && !s.ended && !s.late && s.upto.Before(least.head.Time) {
			waiting = append(waiting, s)
		}
	}
	return waiting
}

// seen tells whether a line was emitted already, from another node. A node that
// has it several times was sent it as often.
func (m *merger) seen(node string, e *Entry) bool {
	k := key{e.Time.UnixNano(), e.Source, maphash.String(m.seed, e.Line)}
	one := m.known[k]
	if one == nil {
		one = &copies{}
		m.remember(k, one)
	}
	i := slices.IndexFunc(one.nodes, func(c copied) bool { return c.node == node })
	if i < 0 {
		i = len(one.nodes)
		one.nodes = append(one.nodes, copied{node: node})
	}
	if one.nodes[i].count++; one.nodes[i].count <= one.emitted {
		return true
	}
	one.emitted++
	return false
}

func (m *merger) remember(k key, one *copies) {
	m.known[k] = one
	if len(m.order) < mergeKnown {
		m.order = append(m.order, k)
		return
	}
	delete(m.known, m.order[m.at])
	m.order[m.at] = k
	m.at = (m.at + 1) % mergeKnown
}

// ended tells whether all streams have, and which of them did not end well.
func (m *merger) ended() (broken map[string]error, all bool) {
	broken = map[string]error{}
	for _, s := range m.list {
		if !s.ended || s.head != nil {
			return nil, false
		}
		if s.failed != nil {
			broken[s.node] = s.failed
		}
	}
	return broken, true
}

package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// pipeline is Raft's, with room for answers that nobody takes.
//
// When a follower answers with a newer term or refuses an entry, the goroutine
// of hashicorp/raft (1.8.0) that takes the answers ends. The one that sends
// may be inside AppendEntries by then, and waits for its request to be taken,
// which waits for an earlier answer to be taken, which nobody does any more:
// the leader sends that follower nothing until it loses its office, and Raft
// can't be stopped afterwards. With room for some answers AppendEntries
// returns, and the sender sees that its companion is gone.
type pipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	done    chan struct{}
	close   func()
}

// spareAnswers is far more than the sender can have under way before it looks
// whether its companion is still there.
const spareAnswers = 128

func newPipeline(p raft.AppendPipeline) *pipeline {
	d := &pipeline{AppendPipeline: p, answers: make(chan raft.AppendFuture, spareAnswers), done: make(chan struct{})}
	d.close = sync.OnceFunc(func() { close(d.done) })
	go d.forward()
	return d
}

// forward ends when the pipeline is closed.
func (d *pipeline) forward() {
	for {
		select {
		case answer := <-d.AppendPipeline.Consumer():
			select {
			case d.answers <- answer:
			case <-d.done:
				return
			}
		case <-d.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (d *pipeline) Consumer() <-chan raft.AppendFuture { return d.answers }

// Close implements raft.AppendPipeline.
func (d *pipeline) Close() error {
	d.close()
	return d.AppendPipeline.Close()
}

package logrelay

import (
	"context"
	"sync"
	"time"

	"holdfast/logrelay/journal"
)

// Bounds of what a stream input reads ahead of the disk.
const (
	keepAhead   = 1 << 20                // bytes of a connection that wait for the disk
	keepMost    = 32 << 20               // of all of them; while there are more, each waits for its own, with what it read at once beside it
	keepRelease = 16 << 10               // a connection that had more gives the memory back
	firstRekeep = 100 * time.Millisecond // pause before a write is tried again
	lastRekeep  = 5 * time.Second
)

// keeper has the lines of a connection by TCP or TLS until they are durable.
// Its sender hears nothing of them and keeps none, so a write that the disk
// refuses is tried again with the same lines, and meanwhile no more is read.
// put and end belong to one goroutine.
type keeper struct {
	s   *Server
	ctx context.Context // of the relay: until it ends, writes are tried again
	via uint8

	room chan struct{} // told when less waits
	// A goroutine writes while there is something to: 10,000 idle connections
	// have none.
	group sync.WaitGroup

	mu      sync.Mutex
	waiting journal.Batch
	writing journal.Batch // the writer's, but for its size
	held    int           // bytes of both
	running bool
}

func (s *Server) newKeeper(ctx context.Context, via uint8) *keeper {
	return &keeper{s: s, ctx: ctx, via: via, room: make(chan struct{}, 1)}
}

// put takes a batch's lines and empties it. It blocks while too much waits for
// the disk, or until ctx ends.
func (k *keeper) put(ctx context.Context, batch *journal.Batch) {
	if batch.Len() == 0 {
		return
	}
	k.mu.Lock()
	k.waiting.Join(batch)
	k.held += batch.Size()
	k.s.kept.Add(int64(batch.Size()))
	if !k.running {
		k.running = true
		k.group.Go(func() { k.write(k.ctx) })
	}
	k.mu.Unlock()
	batch.Reset()
	for k.tooMuch() {
		select {
		case <-k.room:
		case <-ctx.Done():
			return
		}
	}
}

func (k *keeper) tooMuch() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held > keepAhead || k.held > 0 && k.s.kept.Load() > keepMost
}

// end waits until all is durable, or is known not to be after the relay's end.
func (k *keeper) end() { k.group.Wait() }

// write writes until nothing waits.
func (k *keeper) write(ctx context.Context) {
	most := 0
	for {
		k.mu.Lock()
		k.writing, k.waiting = k.waiting, k.writing
		size := k.writing.Size()
		if most = max(most, size); size == 0 {
			if k.running = false; most > keepRelease {
				k.writing, k.waiting = journal.Batch{}, journal.Batch{}
			}
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
		k.store(ctx, &k.writing)
		k.mu.Lock()
		k.writing.Reset()
		k.held -= size
		k.mu.Unlock()
		k.s.kept.Add(int64(-size))
		select {
		case k.room <- struct{}{}:
		default:
		}
	}
}

// store makes a batch durable. While the disk refuses it, it is tried again; an
// end that is under way waits for one try more, until Server.ending. What the journal
// has then is written by its own end, unless the disk refuses it: it isn't lost, but
// not yet on the disk.
func (k *keeper) store(ctx context.Context, batch *journal.Batch) {
	for pause := firstRekeep; ; pause = min(2*pause, lastRekeep) {
		last := ctx.Err() != nil
		commit, err := k.s.journal.Append(k.s.ending, batch) // waits if it has no room
		if err == nil {
			_ = commit.Wait(k.s.ending)
			var decided bool
			if decided, err = commit.Done(); !decided {
				k.s.lastLosses.leave(batch.Len())
				return
			}
		}
		if err == nil {
			k.s.metrics.input(k.via).took(batch.Len(), batch.Size())
			return
		}
		if last || k.s.ending.Err() != nil {
			k.s.lastLosses.add(k.s, k.via, batch.Len(), err)
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"holdfast/internal/state"
)

const (
	askTime   = time.Second            // of a server that is asked how far it is
	askRest   = 50 * time.Millisecond  // for the preferred one, once another has answered
	freshAge  = 3 * time.Second        // of a state that is as good as any
	lookEvery = time.Second            // at whether the server is still the right one
	muteBeat  = 900 * time.Millisecond // of a server that the gossip calls dead
)

// mark is what a replica has shown.
type mark struct {
	store string
	index uint64
	at    time.Time // when the index was reached here
}

// newerThan tells whether taking a source's state would be a step back. asked is
// a time before the source looked at its state. A lower index of the same store is
// older, unless a leader confirmed it after this replica reached its own: then the
// log was cut, by a recovery.
func (m mark) newerThan(w Where, asked time.Time) bool {
	if w.Index >= m.index || m.store == "" || w.Store != "" && w.Store != m.store {
		return false
	}
	return w.Store == "" || !w.Confirmed || !asked.Add(-w.Age).After(m.at)
}

func (r *Replica) mark() mark {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.have
}

// moved notes that an index was reached; anew: the tables were replaced, and the
// index may be lower.
func (r *Replica) moved(index uint64, anew bool) {
	var store string
	if c := r.store.Snapshot().Cluster(); c != nil {
		store = c.ID
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if anew || index > r.have.index || store != r.have.store {
		r.have = mark{store, index, time.Now()}
	}
}

// base is the URL of the source that streams, or did last.
func (r *Replica) base() string {
	if r.config.Sources == nil {
		return r.config.Base
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.config.Sources() {
		if s.Name == r.status.Source {
			return s.Base
		}
	}
	return r.config.Base
}

// News is closed when a stream begins or ends, or another node leads: take it
// before Status or Leader.
func (r *Replica) News() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.news
}

// reply is what a server said when it was asked how far it is.
type reply struct {
	rank   int // in Config.Sources
	server Server
	asked  time.Time
	where  Where
	err    error
}

// fresh tells whether it is as good as any other.
func (p *reply) fresh() bool { return p.err == nil && p.where.Confirmed && p.where.Age < freshAge }

// better tells whether p is to be preferred to q. A fresh one is; then the one
// that a leader confirmed last; among equals the one that is first in the list.
func (p *reply) better(q *reply) bool {
	switch {
	case q == nil:
		return true
	case p.fresh() != q.fresh():
		return p.fresh()
	case p.fresh():
		return p.rank < q.rank
	case p.where.Confirmed != q.where.Confirmed:
		return p.where.Confirmed
	case p.where.Confirmed && p.where.Age != q.where.Age:
		return p.where.Age < q.where.Age
	}
	return p.rank < q.rank
}

// ask asks all servers but one at the same time; the answers come within askTime.
func (r *Replica) ask(ctx context.Context, but string) (replies <-chan *reply, count int) {
	servers := r.config.Sources()
	out := make(chan *reply, len(servers))
	for rank, server := range servers {
		if server.Name == but {
			continue
		}
		count++
		go func() { // ends by askTime
			p := &reply{rank: rank, server: server, asked: time.Now()}
			p.where, p.err = r.askOne(ctx, server)
			out <- p
		}()
	}
	return out, count
}

func (r *Replica) askOne(ctx context.Context, server Server) (w Where, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(server.Base, pathWhere), nil)
	if err != nil {
		return w, err
	}
	response, err := r.config.Web.Do(request)
	if err != nil {
		return w, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return w, refusal(response)
	}
	err = json.NewDecoder(io.LimitReader(response.Body, 4<<10)).Decode(&w)
	return w, err
}

// choose finds the server to follow.
func (r *Replica) choose(ctx context.Context) (Server, error) {
	replies, count := r.ask(ctx, "")
	var best *reply
	failed := errors.New("the cluster file has no server")
	var rest <-chan time.Time
	for range count {
		var p *reply
		select {
		case p = <-replies:
		case <-rest:
			return best.server, nil
		}
		have := r.mark()
		switch {
		case p.err != nil:
			failed = fmt.Errorf("%s: %w", p.server.Name, p.err)
			continue
		case have.newerThan(p.where, p.asked):
			failed = fmt.Errorf("%s has entry %d and this node has shown entry %d: an older state is not taken", p.server.Name, p.where.Index, have.index)
			continue
		case p.better(best):
			best = p
		}
		if best.fresh() && rest == nil {
			rest = time.After(askRest)
		}
	}
	if best == nil {
		return Server{}, failed
	}
	return best.server, nil
}

// watchOver ends a stream that is not the right one any more: its server is dead
// by the gossip and says nothing, or hears of no leader while another one does.
func (r *Replica) watchOver(ctx context.Context, server Server, end context.CancelCauseFunc) {
	tick := time.NewTicker(lookEvery / 4)
	defer tick.Stop()
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if r.deadAndSilent(server) {
			end(errors.New("the gossip says that it is dead, and nothing comes from it"))
			return
		}
		age, confirmed := r.store.Snapshot().Age(time.Now())
		if confirmed && age < freshAge || time.Since(looked) < lookEvery {
			continue
		}
		looked = time.Now()
		if other := r.fresher(ctx, server); other != "" {
			end(fmt.Errorf("it hears of no leader, and %s does", other))
			return
		}
	}
}

func (r *Replica) deadAndSilent(server Server) bool {
	m, known := r.store.Snapshot().Member(server.Name)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.config.OwnGossip && known && m.Liveness == state.Failed && time.Since(r.heard) > muteBeat
}

// fresher is another server that a leader has confirmed lately; "" none.
func (r *Replica) fresher(ctx context.Context, than Server) string {
	replies, count := r.ask(ctx, than.Name)
	for range count {
		p := <-replies
		if have := r.mark(); p.fresh() && !have.newerThan(p.where, p.asked) {
			return p.server.Name
		}
	}
	return ""
}

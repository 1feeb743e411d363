package raftstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast/chaos/history"
	"holdfast/internal/state"
)

// cuts says whose messages get lost on the way to whom.
type cuts struct {
	mu   sync.Mutex
	lost map[[2]string]bool
	hits int // messages that were lost
}

func (c *cuts) set(lost map[[2]string]bool) {
	c.mu.Lock()
	c.lost = lost
	c.mu.Unlock()
}

func (c *cuts) loses(from, to string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost[[2]string{from, to}] {
		c.hits++
		return true
	}
	return false
}

func (c *cuts) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits
}

// cuttable has the servers' messages lost where the test says so.
func (h *hosts) cuttable() *cuts {
	net := &cuts{}
	for name, o := range h.all {
		o.wire = func(to string, send func() error) error {
			if net.loses(name, h.nameOf(to)) {
				return &dialError{to: to, err: errors.New("lost by the test")}
			}
			return send()
		}
	}
	return net
}

// patience of a client, with a server that is cut off too; less than a write
// is held.
const patience = 400 * time.Millisecond

// client works on registers and locks through one server after the other.
type client struct {
	id     int
	hosts  *hosts
	record *history.History
	random *rand.Rand
}

func (c *client) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		up := c.hosts.running()
		if len(up) == 0 {
			continue
		}
		c.hosts.mu.Lock()
		o := up[c.random.IntN(len(up))]
		store, replica := o.store, o.state
		c.hosts.mu.Unlock()
		if store == nil {
			continue // killed meanwhile
		}
		key := fmt.Sprintf("linear/%d", c.random.IntN(4))
		value := fmt.Sprintf("%d/%d", c.id, n)
		switch c.random.IntN(4) {
		case 0:
			c.write(store, key, value)
		case 1:
			c.swap(store, replica, key, value)
		default:
			c.read(store, replica, key)
		}
	}
}

func (c *client) read(store *Store, replica *state.Store, key string) *state.Entry {
	done := c.record.Begin(c.id, history.Op{Key: key, Kind: history.Read})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if store.ReadBarrier(ctx) != nil {
		return nil
	}
	entry, _ := replica.Snapshot().Entry(nil, key)
	if entry == nil {
		entry = &state.Entry{Key: key}
	}
	done(history.Outcome{Value: string(entry.Value)})
	return entry
}

func (c *client) write(store *Store, key, value string) {
	done := c.record.Begin(c.id, history.Op{Key: key, Kind: history.Write, New: value})
	finish(done, propose(store, state.Set, &state.Entry{Key: key, Value: []byte(value)}))
}

func (c *client) swap(store *Store, replica *state.Store, key, value string) {
	old := c.read(store, replica, key)
	if old == nil {
		return
	}
	done := c.record.Begin(c.id, history.Op{Key: key, Kind: history.CAS, Old: string(old.Value), New: value})
	finish(done, propose(store, state.CAS, &state.Entry{Key: key, Value: []byte(value), ModifyIndex: old.ModifyIndex}))
}

func propose(store *Store, verb state.Verb, entry *state.Entry) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := store.Propose(ctx, state.KV{Verb: verb, Entry: *entry})
	return err
}

// finish records an outcome; what was refused surely did not happen.
func finish(done func(history.Outcome), err error) {
	switch {
	case err == nil:
		done(history.Outcome{Swapped: true})
	case errors.Is(err, state.ErrUnknownOutcome):
		done(history.Outcome{Unknown: true})
	case errors.Is(err, state.ErrConflict):
		done(history.Outcome{})
	}
}

// chaosSeed is the seed of a run's choices; CHAOS_SEED repeats them.
func chaosSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("CHAOS_SEED"); given != "" {
		if _, err := fmt.Sscan(given, &seed); err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
	}
	t.Logf("CHAOS_SEED=%d", seed)
	return seed
}

func TestHistoryUnderKillsAndCutsIsLinearizable(t *testing.T) {
	h := newHosts(t, 5, 5)
	seed := chaosSeed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	net := h.cuttable()
	h.startAll()
	h.settled("fb1 fb2 fb3 fb4 fb5", "")
	record := history.New()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	for i := range 6 {
		c := &client{id: i, hosts: h, record: record, random: rand.New(rand.NewPCG(seed, uint64(i+1)))}
		group.Go(func() { c.run(ctx) })
	}
	for round := range 9 {
		victim := h.all[h.order[random.IntN(5)]]
		if round%2 == 0 {
			victim = h.leader()
		}
		injure(t, round, victim, net, random)
		before, _ := record.Count()
		eventually(t, fmt.Sprintf("round %d: clients work again", round), func() error {
			if now, _ := record.Count(); now < before+40 {
				return fmt.Errorf("%d operations", now-before)
			}
			return nil
		})
	}
	h.leader()
	cancel()
	group.Wait()
	known, unknown := record.Count()
	t.Logf("%d operations with a known outcome, %d with an unknown one, %d messages lost", known, unknown, net.count())
	if known < 300 {
		t.Errorf("only %d operations: the test shows nothing", known)
	}
	if err := record.Check(4 * time.Minute); err != nil {
		t.Error(err)
	}
}

// injure makes one fault, waits until it has had its effect and ends it.
func injure(t *testing.T, round int, victim *host, net *cuts, random *rand.Rand) {
	t.Helper()
	h := victim.hosts
	if round%3 == 0 {
		victim.kill()
		h.leader()
		victim.start()
		return
	}
	out, in := map[[2]string]bool{}, map[[2]string]bool{}
	for _, other := range h.order {
		out[[2]string{victim.name, other}] = other != victim.name
		in[[2]string{other, victim.name}] = other != victim.name
	}
	lost := out
	if round%3 == 1 { // both ways; else one
		maps.Copy(lost, in)
	} else if random.IntN(2) == 0 {
		lost = in
	}
	others := slices.DeleteFunc(h.running(), func(o *host) bool { return o == victim })
	before := net.count()
	net.set(lost)
	defer net.set(nil)
	eventually(t, fmt.Sprintf("round %d: messages are lost, and the others have a leader", round), func() error {
		if net.count() < before+20 {
			return fmt.Errorf("%d messages lost", net.count()-before)
		}
		for _, o := range others {
			// Who only can't hear may go on leading: its messages arrive.
			if name, _, ok := o.store.Leader(); !ok || name == victim.name && round%3 == 1 {
				return fmt.Errorf("%s says that %q leads", o.name, name)
			}
		}
		return nil
	})
}

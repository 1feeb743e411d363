package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"time"

	"holdfast/chaos/history"
	"holdfast/lab/site"
)

// storePatience is how long a client waits for one answer; longer than a
// request is held.
const storePatience = 2500 * time.Millisecond

// storeClient works on registers and locks through one node after the other.
type storeClient struct {
	id     int
	run    *storeRun
	record *history.History
	random *rand.Rand
	n      int
}

func (c *storeClient) work(ctx context.Context) {
	for ctx.Err() == nil {
		c.n++
		node := c.run.site.Nodes[c.random.IntN(len(c.run.site.Nodes))]
		key := fmt.Sprintf("chaos/%d/%d", c.run.epoch.Load(), c.random.IntN(3))
		value := fmt.Sprintf("%d/%d", c.id, c.n)
		switch c.random.IntN(6) {
		case 0:
			c.change(ctx, node, history.Op{Key: key, Kind: history.Write, New: value}, "")
		case 1:
			c.swap(ctx, node, key, value)
		case 2:
			c.lock(ctx, node, fmt.Sprintf("chaos/%d/lock", c.run.epoch.Load()))
		default:
			c.read(ctx, node, key)
		}
		pauseBriefly(ctx)
	}
}

// pauseBriefly keeps six clients from using up the machine that five agents
// share with them.
func pauseBriefly(ctx context.Context) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
	}
}

func (c *storeClient) do(ctx context.Context, n *site.Node, method, path string, body []byte) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	answer, err := n.Do(ctx, method, path, body)
	return strings.TrimSpace(string(answer)), err
}

// surelyNot tells whether a write that failed was not carried out: nobody
// listened, or the store says that it had no leader to give it to.
func surelyNot(err error) bool {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return true
	}
	status, ok := errors.AsType[*site.StatusError](err)
	return ok && strings.Contains(status.Text, "o cluster leader") && !strings.Contains(status.Text, "unknown")
}

// read returns what is there, and its index; false when nobody told.
func (c *storeClient) read(ctx context.Context, n *site.Node, key string) (value string, index uint64, ok bool) {
	done := c.record.Begin(c.id, history.Op{Key: key, Kind: history.Read, Via: n.Name()})
	answer, err := c.do(ctx, n, http.MethodGet, "/v1/kv/"+key+"?consistent", nil)
	if status, is := errors.AsType[*site.StatusError](err); is && status.Status == http.StatusNotFound {
		done(history.Outcome{Said: err.Error()})
		return "", 0, true
	}
	var entries []struct {
		Value       []byte
		Session     string
		ModifyIndex uint64
	}
	if err != nil || json.Unmarshal([]byte(answer), &entries) != nil || len(entries) != 1 {
		return "", 0, false
	}
	done(history.Outcome{Value: string(entries[0].Value), Said: fmt.Sprintf("ModifyIndex %d", entries[0].ModifyIndex)})
	return string(entries[0].Value), entries[0].ModifyIndex, true
}

func (c *storeClient) change(ctx context.Context, n *site.Node, op history.Op, query string) (swapped, known bool) {
	op.Via = n.Name()
	done := c.record.Begin(c.id, op)
	answer, err := c.do(ctx, n, http.MethodPut, "/v1/kv/"+op.Key+query, []byte(op.New))
	switch {
	case err == nil:
		done(history.Outcome{Swapped: answer == "true", Said: strings.TrimPrefix(query, "?")})
		return answer == "true", true
	case !surelyNot(err):
		done(history.Outcome{Unknown: true, Said: err.Error()})
		return false, false
	}
	done(history.Outcome{Refused: true, Said: err.Error()})
	return false, true
}

func (c *storeClient) swap(ctx context.Context, n *site.Node, key, value string) {
	old, index, ok := c.read(ctx, n, key)
	if ok {
		c.change(ctx, n, history.Op{Key: key, Kind: history.CAS, Old: old, New: value}, fmt.Sprintf("?cas=%d", index))
	}
}

// lock takes a lock by a session of its own, and gives it up by ending the
// session. The lock is a register that holds the session.
func (c *storeClient) lock(ctx context.Context, n *site.Node, key string) {
	answer, err := c.do(ctx, n, http.MethodPut, "/v1/session/create", []byte(`{"LockDelay":"0s","NodeChecks":[],"Checks":[]}`))
	var session struct{ ID string }
	if err != nil || json.Unmarshal([]byte(answer), &session) != nil || session.ID == "" {
		return
	}
	taken, known := c.change(ctx, n, history.Op{Key: key, Kind: history.CAS, New: session.ID}, "?acquire="+session.ID)
	if known && !taken {
		return // it holds nothing, and may stay
	}
	done := c.record.Begin(c.id, history.Op{Key: key, Kind: history.Release, Old: session.ID})
	for ctx.Err() == nil { // until it is known: nobody else could take the lock
		other := c.run.site.Nodes[c.random.IntN(len(c.run.site.Nodes))]
		if answer, err := c.do(ctx, other, http.MethodPut, "/v1/session/destroy/"+session.ID, nil); err == nil && answer == "true" {
			done(history.Outcome{})
			return
		}
		pauseBriefly(ctx)
	}
	done(history.Outcome{Unknown: true})
}

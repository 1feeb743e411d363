package api

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	consul "github.com/hashicorp/consul/api"

	"holdfast/internal/state"
)

// withAgent is a cell whose own node is in the catalog, alive.
func withAgent(t *testing.T, options ...option) *cell {
	t.Helper()
	c := newCell(t, options...)
	c.apply(web("n1", "10.1.0.1", state.Passing))
	return c
}

func TestConsulClientKeepsSessions(t *testing.T) {
	c := withAgent(t)
	session := c.consul().Session()
	id, _, err := session.Create(&consul.SessionEntry{
		Name: "patroni", TTL: "60s", Behavior: "delete", LockDelay: time.Millisecond,
		ServiceChecks: []consul.ServiceCheck{{ID: "service:web"}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, meta, err := session.Info(id, nil)
	want := &consul.SessionEntry{
		ID: id, Name: "patroni", Node: "n1", TTL: "1m", Behavior: "delete", LockDelay: time.Millisecond,
		NodeChecks: []string{"serfHealth"}, ServiceChecks: []consul.ServiceCheck{{ID: "service:web"}}, CreateIndex: 2,
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil || meta.LastIndex != 2 {
		t.Errorf("info: %v %+v %s", err, meta, diff)
	}
	for _, name := range []string{"list", "node"} {
		all, _, err := session.List(nil)
		if name == "node" {
			all, _, err = session.Node("N1", nil)
		}
		if err != nil || len(all) != 1 || all[0].ID != id {
			t.Errorf("%s: %+v, %v", name, all, err)
		}
	}
	if renewed, _, err := session.Renew(id, nil); err != nil || renewed == nil || renewed.ID != id {
		t.Errorf("renew: %+v, %v", renewed, err)
	}
	if _, err := session.Destroy(id, nil); err != nil {
		t.Fatal(err)
	}
	if got, _, err := session.Info(id, nil); err != nil || got != nil {
		t.Errorf("after its end: %+v, %v", got, err)
	}
	if renewed, _, err := session.Renew(id, nil); err != nil || renewed != nil {
		t.Errorf("renew after its end: %+v, %v; the client wants a 404", renewed, err)
	}
	if _, err := session.Destroy(id, nil); err != nil {
		t.Errorf("destroyed twice: %v", err)
	}
	id, _, err = session.CreateNoChecks(&consul.SessionEntry{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := session.Info(id, nil); err != nil || len(got.NodeChecks) != 0 || got.LockDelay != 15*time.Second || got.TTL != "" || got.Behavior != "release" {
		t.Errorf("a session without checks: %+v, %v", got, err)
	}
}

// The texts are those of Consul 1.15; Patroni looks at how they begin, and at
// the status.
func TestSessionsAreRefusedInConsulsWords(t *testing.T) {
	c := withAgent(t)
	c.apply(state.Register{Node: node("n2", "10.1.0.2"), Checks: []state.Check{{ID: "serfHealth", Status: state.Critical}}})
	for body, want := range map[string]string{
		`{"TTL":"5s"}`:                          "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]",
		`{"TTL":"25h"}`:                         "Invalid Session TTL '90000000000000', must be between [10s=24h0m0s]",
		`{"TTL":"soon"}`:                        "Session TTL 'soon' invalid",
		`{"Behavior":"forget"}`:                 "Invalid Behavior setting 'forget'",
		`{"LockDelay":"2m"}`:                    "Invalid LockDelay '2m0s', must be between [0s=1m0s]",
		`{"Node":"n9"}`:                         "Missing node registration",
		`{"NodeChecks":["other"]}`:              "Missing check 'other' registration",
		`{"node":"n2","checks":["serfHealth"]}`: "Check 'serfHealth' is in critical state",
	} {
		code, _, text := c.do("PUT", "/v1/session/create", strings.NewReader(body))
		if code != 500 || !strings.HasPrefix(text, want) {
			t.Errorf("%s: %d %q, want 500 %q", body, code, text, want)
		}
	}
	code, _, text := c.do("PUT", "/v1/kv/lock?acquire=5a3c", strings.NewReader("x"))
	if code != 500 || text != `invalid session "5a3c"` {
		t.Errorf("acquire for a session that is not there: %d %q", code, text)
	}
	for body, want := range map[string]time.Duration{
		`{"LockDelay":"1s"}`: time.Second, `{"LockDelay":3}`: 3 * time.Second, `{"lock_delay":5000000000}`: 5 * time.Second, `{"LockDelay":0}`: 0, ``: 15 * time.Second,
	} {
		code, _, text := c.do("PUT", "/v1/session/create", strings.NewReader(body))
		all, _ := c.store.Snapshot().Sessions(nil)
		if code != 200 || len(all) != 1 || all[0].LockDelay != want {
			t.Errorf("%s: %d %s, %+v, want a lock-delay of %s", body, code, text, all, want)
		}
		for _, s := range all {
			c.apply(state.DestroySession{ID: s.ID})
		}
	}
}

func TestConsulClientAcquiresAndReleasesKeys(t *testing.T) {
	c := withAgent(t)
	kv, session := c.consul().KV(), c.consul().Session()
	one, _, err := session.Create(&consul.SessionEntry{LockDelay: time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := session.Create(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	acquire := func(id string, want bool) {
		t.Helper()
		done, _, err := kv.Acquire(&consul.KVPair{Key: "leader", Value: []byte(id), Session: id, Flags: 7}, nil)
		if err != nil || done != want {
			t.Errorf("acquire: %v, %v, want %v", done, err, want)
		}
	}
	acquire(one, true)
	acquire(one, true)
	acquire(two, false)
	if done, _, err := kv.Release(&consul.KVPair{Key: "leader", Session: two}, nil); err != nil || done {
		t.Errorf("released by another: %v, %v", done, err)
	}
	pair, _, err := kv.Get("leader", nil)
	if err != nil || pair.Session != one || pair.LockIndex != 1 || string(pair.Value) != one || pair.Flags != 7 {
		t.Errorf("held: %+v, %v", pair, err)
	}
	if _, err := session.Destroy(one, nil); err != nil {
		t.Fatal(err)
	}
	acquire(two, false) // the lock-delay
	c.apply(state.EndDelay{Key: "leader", Index: c.store.Snapshot().LockDelays()[0].Index})
	acquire(two, true)
	if done, _, err := kv.Release(&consul.KVPair{Key: "leader", Session: two}, nil); err != nil || !done {
		t.Errorf("release: %v, %v", done, err)
	}
}

// Consul's own lock and semaphore, which stand on all of the above and on
// blocking queries.
func TestConsulClientsLockExcludes(t *testing.T) {
	c := withAgent(t)
	options := func() *consul.LockOptions {
		return &consul.LockOptions{Key: "lock", LockWaitTime: 50 * time.Millisecond, LockTryOnce: true, LockDelay: time.Millisecond}
	}
	first, err := c.consul().LockOpts(options())
	if err != nil {
		t.Fatal(err)
	}
	lost, err := first.Lock(nil)
	if err != nil || lost == nil {
		t.Fatalf("lock: %v, %v", lost, err)
	}
	second, err := c.consul().LockOpts(options())
	if err != nil {
		t.Fatal(err)
	}
	if held, err := second.Lock(nil); err != nil || held != nil {
		t.Fatalf("a second holder: %v, %v", held, err)
	}
	if err := first.Unlock(); err != nil {
		t.Fatal(err)
	}
	if held, err := second.Lock(nil); err != nil || held == nil {
		t.Fatalf("a free lock: %v, %v", held, err)
	}
	lost, err = lostOf(second)
	if err != nil {
		t.Fatal(err)
	}
	// The node's health goes, and with it the lock: the client must be told.
	c.apply(state.UpdateCheck{Node: "n1", Updates: []state.CheckState{{ID: state.SerfHealth, Status: state.Critical}}})
	select {
	case <-lost:
	case <-time.After(patience):
		t.Fatal("the holder was not told that its lock is lost")
	}
}

// lostOf releases and takes the lock again, to have its channel.
func lostOf(l *consul.Lock) (<-chan struct{}, error) {
	if err := l.Unlock(); err != nil {
		return nil, err
	}
	lost, err := l.Lock(nil)
	if err == nil && lost == nil {
		err = errors.New("the lock was not had")
	}
	return lost, err
}

func TestConsulClientsSemaphoreLimits(t *testing.T) {
	c := withAgent(t)
	hold := func() (*consul.Semaphore, <-chan struct{}) {
		t.Helper()
		s, err := c.consul().SemaphoreOpts(&consul.SemaphoreOptions{Prefix: "pool", Limit: 2, SemaphoreWaitTime: 50 * time.Millisecond, SemaphoreTryOnce: true})
		if err != nil {
			t.Fatal(err)
		}
		held, err := s.Acquire(nil)
		if err != nil {
			t.Fatal(err)
		}
		return s, held
	}
	first, held := hold()
	if held == nil {
		t.Fatal("the first of two was not let in")
	}
	if _, held := hold(); held == nil {
		t.Fatal("the second of two was not let in")
	}
	if _, held := hold(); held != nil {
		t.Fatal("a third of two was let in")
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if _, held := hold(); held == nil {
		t.Fatal("a place that was given back was not to be had")
	}
}

func TestConsulClientsTransactionsAreAllOrNothing(t *testing.T) {
	c := withAgent(t)
	txn := c.consul().Txn()
	op := func(verb consul.KVOp, key, value string, index uint64) *consul.TxnOp {
		return &consul.TxnOp{KV: &consul.KVTxnOp{Verb: verb, Key: key, Value: []byte(value), Index: index}}
	}
	ok, response, _, err := txn.Txn(consul.TxnOps{
		op(consul.KVCheckNotExists, "a", "", 0), op(consul.KVSet, "a", "one", 0), op(consul.KVGet, "a", "", 0),
		op(consul.KVSet, "d/x", "two", 0), op(consul.KVGetTree, "d/", "", 0), op(consul.KVDelete, "d/x", "", 0),
	}, nil)
	if err != nil || !ok {
		t.Fatalf("txn: %v, %+v, %v", ok, response, err)
	}
	var got []string
	for _, r := range response.Results {
		got = append(got, r.KV.Key+"="+string(r.KV.Value))
	}
	if diff := cmp.Diff([]string{"a=", "a=one", "d/x=", "d/x=two"}, got); diff != "" {
		t.Error(diff)
	}
	ok, response, _, err = txn.Txn(consul.TxnOps{op(consul.KVSet, "a", "lost", 0), op(consul.KVCAS, "b", "x", 9)}, nil)
	if err != nil || ok || len(response.Errors) != 1 || response.Errors[0].OpIndex != 1 || !strings.Contains(response.Errors[0].What, `key "b"`) {
		t.Fatalf("a transaction that fails: %v, %+v, %v", ok, response, err)
	}
	if pair, _, err := c.consul().KV().Get("a", nil); err != nil || string(pair.Value) != "one" {
		t.Errorf("half a transaction was carried out: %+v, %v", pair, err)
	}
	if _, _, _, err := txn.Txn(consul.TxnOps{{Node: &consul.NodeTxnOp{Verb: consul.NodeGet, Node: consul.Node{Node: "n1"}}}}, nil); err == nil || !strings.Contains(err.Error(), "only operations on keys") {
		t.Errorf("an operation on a node: %v", err)
	}
	// A client behind a forwarded call must see the same.
	forwarded := state.ErrorFrom(state.ErrorCode(&state.OpError{Op: 3, Err: state.ErrConflict}))
	if failed, ok := failedOp(forwarded); !ok || failed.OpIndex != 3 {
		t.Errorf("of an error that was forwarded: %+v, %v", failed, ok)
	}
}

// A renewal, a session or a key of others must wake nobody who waits for his own.
func TestABlockingQueryOnASessionWakesForItAlone(t *testing.T) {
	c := withAgent(t)
	c.apply(state.CreateSession{Session: state.Session{ID: "mine", Node: "n1"}})
	done := make(chan *consul.SessionEntry, 1)
	go func() {
		got, _, err := c.consul().Session().Info("mine", &consul.QueryOptions{WaitIndex: 2, WaitTime: time.Minute})
		if err != nil {
			t.Error(err)
		}
		done <- got
	}()
	c.blocked(1)
	c.apply(state.RenewSession{ID: "mine"}, state.CreateSession{Session: state.Session{ID: "other", Node: "n1"}},
		state.KV{Verb: state.Acquire, Entry: state.Entry{Key: "k", Session: "mine"}}, state.DestroySession{ID: "other"})
	c.apply(state.DestroySession{ID: "mine"})
	if got := <-done; got != nil {
		t.Errorf("woken by something else: %+v", got)
	}
	if needless := c.counted(c.server.metrics.wakes, "unchanged"); needless != 0 {
		t.Errorf("woken %d times for nothing", needless)
	}
}

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	consul "github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/state"
	"holdfast/lab/stall"
)

// blocked waits until so many queries wait.
func (c *cell) blocked(n int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%d blocking queries", n), func() bool {
		return int(testutil.ToFloat64(c.server.metrics.blocking)) == n
	})
}

// wakes counts how often blocking queries looked again, by what they found.
func (c *cell) wakes(result string) int { return c.counted(c.server.metrics.wakes, result) }

func TestBlockingQueriesWakeForTheirOwnObjectOnly(t *testing.T) {
	c := newCell(t)
	c.apply(web("n1", "10.1.0.1", state.Passing), state.KV{Verb: state.Set, Entry: state.Entry{Key: "a/1", Value: []byte("1")}})
	client := c.consul()
	queries := map[string]struct {
		run    func(*consul.QueryOptions) (*consul.QueryMeta, error)
		change state.Command
	}{
		"a service's health": {
			func(q *consul.QueryOptions) (*consul.QueryMeta, error) {
				_, meta, err := client.Health().Service("web", "", true, q)
				return meta, err
			},
			state.UpdateCheck{Node: "n1", Updates: []state.CheckState{{ID: "service:web", Status: state.Critical}}},
		},
		"a service that is not there yet": {
			func(q *consul.QueryOptions) (*consul.QueryMeta, error) {
				_, meta, err := client.Health().Service("ntp", "", true, q)
				return meta, err
			},
			state.Register{Node: node("n1", "10.1.0.1"), Services: []state.Service{{ID: "ntp", Name: "ntp", Port: 123}}},
		},
		"a key": {
			func(q *consul.QueryOptions) (*consul.QueryMeta, error) {
				_, meta, err := client.KV().Get("a/1", q)
				return meta, err
			},
			state.KV{Verb: state.Set, Entry: state.Entry{Key: "a/1", Value: []byte("2")}},
		},
		"a key that is not there yet": {
			func(q *consul.QueryOptions) (*consul.QueryMeta, error) {
				_, meta, err := client.KV().Get("none", q)
				return meta, err
			},
			state.KV{Verb: state.Set, Entry: state.Entry{Key: "none"}},
		},
		"a prefix that loses a key": {
			func(q *consul.QueryOptions) (*consul.QueryMeta, error) {
				_, meta, err := client.KV().List("a/", q)
				return meta, err
			},
			state.KV{Verb: state.Delete, Entry: state.Entry{Key: "a/1"}},
		},
		"the nodes": {
			func(q *consul.QueryOptions) (*consul.QueryMeta, error) {
				_, meta, err := client.Catalog().Nodes(q)
				return meta, err
			},
			state.Register{Node: node("n7", "10.1.0.7")},
		},
	}
	for what, query := range queries {
		meta, err := query.run(nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		type result struct {
			meta *consul.QueryMeta
			err  error
		}
		answered := make(chan result, 1)
		go func() {
			meta, err := query.run(&consul.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute})
			answered <- result{meta, err}
		}()
		c.blocked(1)
		spurious := c.wakes("unchanged")
		for i := range 5 { // others' changes
			c.apply(state.KV{Verb: state.Set, Entry: state.Entry{Key: "other/" + strconv.Itoa(i)}})
			if what == "the nodes" {
				continue
			}
			c.apply(state.Register{Node: node("n9", "10.1.0.9"), Services: []state.Service{{ID: "x", Name: "x", Port: uint16(i)}}})
		}
		if got := c.wakes("unchanged"); got != spurious {
			t.Errorf("%s: looked again %d times for others' changes", what, got-spurious)
		}
		index := c.apply(query.change)
		r := <-answered
		if r.err != nil || r.meta.LastIndex != index {
			t.Errorf("%s: woke at index %d, want %d (before: %d), %v", what, r.meta.LastIndex, index, meta.LastIndex, r.err)
		}
		c.apply(state.Deregister{Node: "n9"})
	}
	c.blocked(0)
}

func TestBlockingQueryIsFreedWhenItsClientGoes(t *testing.T) {
	c := newCell(t)
	c.apply(web("n1", "10.1.0.1", state.Passing))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const clients = 20
	for range clients {
		wg.Go(func() {
			options := (&consul.QueryOptions{WaitIndex: 1, WaitTime: 10 * time.Minute}).WithContext(ctx)
			_, _, _ = c.consul().Health().Service("web", "", true, options) // cancelled below
		})
	}
	c.blocked(clients)
	cancel()
	wg.Wait()
	c.blocked(0)
	if got := c.counted(c.server.metrics.blocked, "gone"); got != clients {
		t.Errorf("%d queries ended as gone, want %d", got, clients)
	}
	eventually(t, "no goroutine of a query is left", func() bool { return !strings.Contains(goroutines(t), "api.(*Server).block") })
	c.stop()
	eventually(t, "no goroutine of the server is left", func() bool { return !strings.Contains(goroutines(t), "api.(*Server)") })
}

// goroutines is the stacks of all goroutines of the process.
func goroutines(t *testing.T) string {
	t.Helper()
	var stacks strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&stacks, 2); err != nil {
		t.Fatal(err)
	}
	return stacks.String()
}

func TestBlockingQueriesAreCapped(t *testing.T) {
	c := newCell(t, func(config *Config, _ *Deps) { config.MaxBlocking = 2 })
	c.apply(web("n1", "10.1.0.1", state.Passing))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 2 {
		wg.Go(func() {
			_, _, _ = c.consul().Catalog().Nodes((&consul.QueryOptions{WaitIndex: 1}).WithContext(ctx)) // until the test ends
		})
	}
	c.blocked(2)
	code, header, text := c.get("/v1/catalog/nodes?index=1")
	if code != 429 || header.Get("Retry-After") == "" || !strings.Contains(text, "too many blocking queries") {
		t.Errorf("the third: %d %q", code, text)
	}
	if code, _, _ := c.get("/v1/catalog/nodes"); code != 200 {
		t.Errorf("a query that does not block: %d", code)
	}
	if got := c.counted(c.server.metrics.refused, "blocking"); got != 1 {
		t.Errorf("%d refusals counted", got)
	}
}

func TestStopAnswersBlockingQueries(t *testing.T) {
	c := newCell(t)
	index := c.apply(web("n1", "10.1.0.1", state.Passing))
	// What has two seconds to end does not always, where the machine stands still.
	stall.Test(t, "").Repeat(t, "a stop under queries", 3, stopTimeout/4, func() (from, to time.Time, missed error) {
		from, to, missed = stopUnderQueries(c, index)
		c.run() // a task may run again
		return from, to, missed
	})
	if _, _, err := c.consul().Catalog().Nodes(nil); err != nil {
		t.Errorf("after running again: %v", err)
	}
}

// stopUnderQueries stops a cell while queries wait, and tells when that began and
// ended, and what was missed: that they are all answered, and hold nothing up.
func stopUnderQueries(c *cell, index uint64) (from, to time.Time, missed error) {
	c.t.Helper()
	clients := map[string]*consul.Client{"loopback": c.consul(), "socket": c.admin()}
	results := make(chan error, len(clients))
	for _, client := range clients {
		go func() {
			nodes, meta, err := client.Catalog().Nodes(&consul.QueryOptions{WaitIndex: index, WaitTime: 10 * time.Minute})
			if err == nil && (len(nodes) != 1 || meta.LastIndex != index) {
				err = fmt.Errorf("nodes %+v at %d", nodes, meta.LastIndex)
			}
			results <- err
		}()
	}
	c.blocked(len(clients))
	from = time.Now()
	c.stop()
	to = time.Now()
	if took := to.Sub(from); took > stopTimeout {
		missed = fmt.Errorf("it took %v: the queries held it up", took)
	}
	for range clients {
		missed = errors.Join(missed, <-results)
	}
	return from, to, missed
}

// bench is a server without sockets, for virtual time.
func bench(t *testing.T) *cell {
	t.Helper()
	store := state.New()
	c := &cell{t: t, store: store, registry: prometheus.NewRegistry(), raft: &fakeRaft{store: store, leader: "n1"}}
	m, err := newMetrics(c.registry)
	if err != nil {
		t.Fatal(err)
	}
	c.server = &Server{
		config: Config{Node: "n1", Datacenter: "foobar"}.withDefaults(), state: store, raft: c.raft, proposer: c.raft,
		now: time.Now, metrics: m, slots: make(chan struct{}, 8), watch: newWatcher(store, time.Now),
	}
	c.server.routes = newRouteTable(routes())
	return c
}

// ask answers one request without a connection.
func (c *cell) ask(target string) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	request := httptest.NewRequestWithContext(c.t.Context(), "GET", target, nil)
	request.Host = "localhost"
	c.server.handler(fromSocket, nil).ServeHTTP(answer, request)
	return answer
}

func TestWaitIsAsLongAsAskedAndALittleMore(t *testing.T) {
	tests := map[string]struct{ least, most time.Duration }{
		"10s":   {10 * time.Second, 10*time.Second + 10*time.Second/16},
		"100ms": {100 * time.Millisecond, 100*time.Millisecond + 7*time.Millisecond},
		"2000":  {2 * time.Second, 2*time.Second + 2*time.Second/16}, // milliseconds
		"":      {5 * time.Minute, 5*time.Minute + 5*time.Minute/16},
		"99h":   {10 * time.Minute, 10*time.Minute + 10*time.Minute/16},
	}
	for wait, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			c := bench(t)
			index := c.apply(web("n1", "10.1.0.1", state.Passing))
			began := time.Now()
			answer := c.ask("/v1/catalog/nodes?index=" + strconv.FormatUint(index, 10) + "&wait=" + wait)
			took := time.Since(began)
			if took < test.least || took > test.most {
				t.Errorf("wait=%s took %s, want %s to %s", wait, took, test.least, test.most)
			}
			if answer.Code != 200 || answer.Header().Get("X-Consul-Index") != strconv.FormatUint(index, 10) {
				t.Errorf("wait=%s: %d, index %s", wait, answer.Code, answer.Header().Get("X-Consul-Index"))
			}
		})
	}
}

// A client that comes from a node that is ahead, or from a life of the store
// before a restore, must neither spin nor hang.
func TestIndexFromTheFutureIsAnsweredSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := bench(t)
		c.apply(web("n1", "10.1.0.1", state.Passing))
		began := time.Now()
		answer := c.ask("/v1/catalog/nodes?index=500&wait=10m")
		if took := time.Since(began); took != aheadWait {
			t.Errorf("took %s, want %s", took, aheadWait)
		}
		if answer.Header().Get("X-Consul-Index") != "1" {
			t.Errorf("index %s: the client must see that it went back", answer.Header().Get("X-Consul-Index"))
		}
	})
}

func TestReplicaThatCatchesUpAnswersTheClientFromTheFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := bench(t)
		c.apply(web("n1", "10.1.0.1", state.Passing))
		c.raft.index = 600
		time.AfterFunc(aheadWait/2, func() { c.apply(state.Register{Node: node("n2", "10.1.0.2")}) })
		began := time.Now()
		answer := c.ask("/v1/catalog/nodes?index=500")
		if took := time.Since(began); took != aheadWait/2 || answer.Header().Get("X-Consul-Index") != "601" {
			t.Errorf("took %s, index %s", took, answer.Header().Get("X-Consul-Index"))
		}
	})
}

func TestRestoreWakesBlockingQueries(t *testing.T) {
	c := newCell(t)
	c.apply(web("n1", "10.1.0.1", state.Passing))
	var saved strings.Builder
	if _, err := c.store.Snapshot().WriteTo(&saved); err != nil {
		t.Fatal(err)
	}
	index := c.apply(web("n2", "10.1.0.2", state.Passing))
	answered := make(chan uint64, 1)
	go func() {
		_, meta, err := c.consul().Catalog().Nodes(&consul.QueryOptions{WaitIndex: index, WaitTime: time.Minute})
		if err != nil {
			t.Errorf("blocking query: %v", err)
			meta = &consul.QueryMeta{}
		}
		answered <- meta.LastIndex
	}()
	c.blocked(1)
	if err := c.store.Restore(strings.NewReader(saved.String())); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got == 0 || got >= index {
		t.Errorf("index %d after the restore of an older state, had %d", got, index)
	}
}

func TestConsistencyModes(t *testing.T) {
	noLeaderKnown := func(r *fakeRaft) { r.leader = "" }
	refuses := func(r *fakeRaft) { r.barrierErr = state.ErrNoLeader }
	tests := map[string]struct {
		query    string
		raft     func(*fakeRaft)
		age      time.Duration // < 0: never confirmed
		code     int
		barriers int
		shows    string
	}{
		"default, leader known, fresh":           {"", nil, time.Second, 200, 0, "leader"},
		"default, leader known, old":             {"", nil, 3 * time.Second, 200, 1, "leader"},
		"default, never confirmed":               {"", nil, -1, 200, 1, "leader"},
		"default, no leader":                     {"", noLeaderKnown, time.Second, 500, 0, ""},
		"default, old, leader does not answer":   {"", refuses, 3 * time.Second, 500, 1, ""},
		"consistent":                             {"?consistent", nil, 0, 200, 1, "consistent"},
		"consistent, leader does not answer":     {"?consistent", refuses, 0, 500, 1, ""},
		"stale":                                  {"?stale", nil, time.Hour, 200, 0, "stale"},
		"stale, no leader":                       {"?stale", noLeaderKnown, time.Hour, 200, 0, "stale"},
		"stale within bounds":                    {"?stale&max_stale=2h", noLeaderKnown, time.Hour, 200, 0, "stale"},
		"stale out of bounds asks the leader":    {"?max_stale=10m", nil, time.Hour, 200, 1, "stale"},
		"stale out of bounds, leader is no more": {"?max_stale=10m", refuses, time.Hour, 500, 1, ""},
	}
	for name, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			c := bench(t)
			c.apply(web("n1", "10.1.0.1", state.Passing))
			if test.age >= 0 {
				c.store.Touch(time.Now().Add(-test.age))
			}
			if test.raft != nil {
				c.raft.set(test.raft)
			}
			c.server.log = discard()
			answer := c.ask("/v1/health/service/web" + test.query)
			if answer.Code != test.code || c.raft.barriers != test.barriers {
				t.Errorf("%s: %d after %d barriers, want %d after %d: %s", name, answer.Code, c.raft.barriers, test.code, test.barriers, answer.Body)
			}
			if test.code == 500 && answer.Body.String() != "No cluster leader" {
				t.Errorf("%s: %q", name, answer.Body)
			}
			if got := answer.Header().Get("X-Consul-Effective-Consistency"); got != test.shows {
				t.Errorf("%s: mode %q, want %q", name, got, test.shows)
			}
			wantContact := strconv.FormatInt(test.age.Milliseconds(), 10)
			if test.age < 0 {
				wantContact = strconv.Itoa(unknownAge)
			}
			if got := answer.Header().Get("X-Consul-LastContact"); test.code == 200 && got != wantContact {
				t.Errorf("%s: last contact %s ms, want %s", name, got, wantContact)
			}
		})
	}
}

func TestWritesWithoutALeaderAreRefused(t *testing.T) {
	c := newCell(t)
	for want, err := range map[string]error{
		"500 No cluster leader":                      state.ErrNoLeader,
		"500 No cluster leader: down: fb3; start it": fmt.Errorf("propose: %w (timed out): %w: down: fb3; start it", state.ErrNoLeader, state.ErrNoLeader),
		"500 outcome unknown":                        state.ErrUnknownOutcome,
		"400 invalid command":                        fmt.Errorf("%w: key is too long", state.ErrInvalid),
	} {
		c.raft.set(func(r *fakeRaft) { r.proposeErr = err })
		code, _, text := c.do("PUT", "/v1/kv/a", strings.NewReader("v"))
		if got := fmt.Sprint(code, " ", text); !strings.HasPrefix(got, want) {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
	if entry, _ := c.store.Snapshot().Entry(nil, "a"); entry != nil {
		t.Error("a refused write happened")
	}
	c.raft.set(func(r *fakeRaft) { r.proposeErr, r.leader = nil, "" })
	if _, _, err := c.consul().KV().Get("a", nil); err == nil || !consul.IsRetryableError(err) {
		t.Errorf("a read without a leader: %v; clients must see that they may retry", err)
	}
	if _, _, err := c.consul().KV().Get("a", &consul.QueryOptions{AllowStale: true}); err != nil {
		t.Errorf("a stale read without a leader: %v", err)
	}
	if leader, err := c.consul().Status().Leader(); err != nil || leader != "" {
		t.Errorf("leader %q, %v", leader, err)
	}
	if code, _, _ := c.do("HEAD", "/v1/kv/a?stale", http.NoBody); code != 404 {
		t.Errorf("HEAD of a key that is not there: %d", code)
	}
}

// Who counts the queries that wait may change something then: it wakes them. It
// fails where a query counts that has not looked yet.
func TestAQueryCountsAsOneThatWaitsOnceItHasLooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := bench(t)
		index := c.apply(set("a", "one"))
		var waiting []float64 // at each look
		look := func(s *Server, asked *call) error {
			return s.query(asked, func(snap *state.Snapshot, ws state.WatchSet) answer {
				waiting = append(waiting, testutil.ToFloat64(s.metrics.blocking))
				_, index := snap.Entry(ws, "a")
				return answer{index: index}
			})
		}
		c.server.routes.exact["/v1/look"] = route{"/v1/look", methods{"GET": {None, nil, look}}}
		c.ask("/v1/look?wait=1s&index=" + strconv.FormatUint(index, 10))
		if !slices.Equal(waiting, []float64{0, 1}) {
			t.Errorf("at its looks %v queries wait, want none and one", waiting)
		}
		if left := testutil.ToFloat64(c.server.metrics.blocking); left != 0 {
			t.Errorf("%v wait though none is there", left)
		}
	})
}

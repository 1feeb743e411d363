package api

import (
	"bytes"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	consul "github.com/hashicorp/consul/api"

	"holdfast/internal/state"
)

func TestConsulClientReadsAndWritesKeys(t *testing.T) {
	kv := newCell(t).consul().KV()
	if pair, meta, err := kv.Get("a/b", nil); err != nil || pair != nil || meta.LastIndex == 0 {
		t.Errorf("a key that is not there: %+v, %+v, %v", pair, meta, err)
	}
	if _, err := kv.Put(&consul.KVPair{Key: "a/b", Value: []byte("one"), Flags: 1 << 63}, nil); err != nil {
		t.Fatal(err)
	}
	pair, meta, err := kv.Get("a/b", nil)
	want := &consul.KVPair{Key: "a/b", Value: []byte("one"), Flags: 1 << 63, CreateIndex: 1, ModifyIndex: 1}
	if diff := cmp.Diff(want, pair); diff != "" || err != nil || meta.LastIndex != 1 {
		t.Errorf("get: %v %+v %s", err, meta, diff)
	}
	for _, step := range []struct {
		index uint64
		want  bool
	}{{0, false}, {9, false}, {1, true}, {1, false}} {
		done, _, err := kv.CAS(&consul.KVPair{Key: "a/b", Value: []byte("two"), ModifyIndex: step.index}, nil)
		if err != nil || done != step.want {
			t.Errorf("cas at %d: %v, %v, want %v", step.index, done, err, step.want)
		}
	}
	if done, _, err := kv.CAS(&consul.KVPair{Key: "new", Value: nil}, nil); err != nil || !done {
		t.Errorf("cas of a new key: %v, %v", done, err)
	}
	if done, _, err := kv.DeleteCAS(&consul.KVPair{Key: "new", ModifyIndex: 99}, nil); err != nil || done {
		t.Errorf("delete with another index: %v, %v", done, err)
	}
	if _, err := kv.Delete("new", nil); err != nil {
		t.Error(err)
	}
	if _, err := kv.Delete("new", nil); err != nil {
		t.Errorf("deleting twice: %v", err)
	}
}

func TestConsulClientListsAndDeletesTrees(t *testing.T) {
	c := newCell(t)
	kv := c.consul().KV()
	for _, key := range []string{"x/a/1", "x/a/2", "x/b", "x/c/1", "y", "odd/%zz //../ü?#"} {
		if _, err := kv.Put(&consul.KVPair{Key: key, Value: []byte(key)}, nil); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	if pair, _, err := kv.Get("odd/%zz //../ü?#", nil); err != nil || pair == nil {
		t.Errorf("a key with odd characters: %+v, %v", pair, err)
	}
	if pairs, _, err := kv.List("x/", nil); err != nil || len(pairs) != 4 || pairs[3].Key != "x/c/1" {
		t.Errorf("list: %+v, %v", pairs, err)
	}
	if pairs, _, err := kv.List("z/", nil); err != nil || pairs != nil {
		t.Errorf("list of nothing: %+v, %v", pairs, err)
	}
	for separator, want := range map[string][]string{"": {"x/a/1", "x/a/2", "x/b", "x/c/1"}, "/": {"x/a/", "x/b", "x/c/"}} {
		if keys, _, err := kv.Keys("x/", separator, nil); err != nil || !slices.Equal(keys, want) {
			t.Errorf("keys with separator %q: %v, %v, want %v", separator, keys, err, want)
		}
	}
	if _, err := kv.DeleteTree("x/a", nil); err != nil {
		t.Fatal(err)
	}
	if keys, _, err := kv.Keys("x/", "", nil); err != nil || !slices.Equal(keys, []string{"x/b", "x/c/1"}) {
		t.Errorf("after deleting a tree: %v, %v", keys, err)
	}
	if code, _, text := c.get("/v1/kv/y?raw"); code != 200 || text != "y" {
		t.Errorf("raw: %d %q", code, text)
	}
	if code, header, _ := c.get("/v1/kv/y?raw"); header.Get("Content-Security-Policy") != "sandbox" || header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("raw: %d, headers %v", code, header)
	}
	if code, header, text := c.get("/v1/kv/none"); code != 404 || text != "" || header.Get("X-Consul-Index") == "" {
		t.Errorf("a key that is not there: %d %q %v", code, text, header)
	}
	if code, _, text := c.get("/v1/kv/?keys&separator=/"); code != 200 || text != `["odd/","x/","y"]` {
		t.Errorf("top of the tree: %d %s", code, text)
	}
}

func TestKVRefusesBadParameters(t *testing.T) {
	c := newCell(t)
	tests := []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"GET", "/v1/kv/", "", 400, "Missing key name"},
		{"PUT", "/v1/kv/", "v", 400, "Missing key name"},
		{"DELETE", "/v1/kv/", "", 400, "Missing key name"},
		{"PUT", "/v1/kv/a?flags=x", "v", 400, `Invalid flags value "x"`},
		{"PUT", "/v1/kv/a?cas=-1", "v", 400, `Invalid cas value "-1"`},
		{"PUT", "/v1/kv/a?cas=1&acquire=s", "v", 400, "Conflicting flags: acquire=s&cas=1"},
		{"PUT", "/v1/kv/a?acquire=s", "v", 500, `invalid session "s"`},
		{"DELETE", "/v1/kv/a?cas=1&recurse", "", 400, "Conflicting flags"},
		{"PUT", "/v1/kv/" + strings.Repeat("k", 1025), "v", 400, "key"},
		{"POST", "/v1/kv/a", "v", 405, "method POST not allowed: this path takes DELETE,GET,PUT"},
		{"PUT", "/v1/kv/a?dc=elsewhere", "v", 500, "No path to datacenter"},
		{"GET", "/v1/kv/a?ns=team", "", 400, `Invalid query parameter: "ns"`},
		{"GET", "/v1/kv/a?index=x", "", 400, "Invalid index"},
		{"GET", "/v1/kv/a?wait=x", "", 400, "Invalid wait time"},
		{"GET", "/v1/kv/a?stale&consistent", "", 400, "Cannot specify ?stale with ?consistent, conflicting semantics."},
		{"GET", "/v1/kv/a?max_stale=x", "", 400, "Invalid max_stale value"},
		{"GET", "/v1/kv/a?%zz", "", 400, "Invalid query"},
	}
	for _, test := range tests {
		code, _, text := c.do(test.method, test.path, strings.NewReader(test.body))
		if code != test.code || !strings.Contains(text, test.want) {
			t.Errorf("%s %.60s: %d %q, want %d %q", test.method, test.path, code, text, test.code, test.want)
		}
	}
	if code, _, _ := c.do("PUT", "/v1/kv/a?dc=FOOBAR", strings.NewReader("v")); code != 200 {
		t.Errorf("our own datacenter: %d", code)
	}
}

func TestKVRefusesOversizedValues(t *testing.T) {
	c := newCell(t)
	limit := int(c.server.config.MaxValue)
	value := bytes.Repeat([]byte("v"), limit)
	if code, text := c.push("PUT", "/v1/kv/most", bytes.NewReader(value)); code != 200 || text != "true" {
		t.Errorf("the largest value: %d %q", code, text)
	}
	code, text := c.push("PUT", "/v1/kv/more", bytes.NewReader(append(value, 'v')))
	if code != 413 || !strings.HasPrefix(text, "Request body(524289 bytes) too large, max size: 524288 bytes.") {
		t.Errorf("one byte more: %d %q", code, text)
	}
	unannounced := struct{ *bytes.Reader }{bytes.NewReader(append(value, 'v'))} // no Content-Length
	if code, text := c.push("PUT", "/v1/kv/more", unannounced); code != 413 || !strings.Contains(text, "too large, max size: 524288 bytes.") {
		t.Errorf("one byte more, unannounced: %d %q", code, text)
	}
	if entry, _ := c.store.Snapshot().Entry(nil, "more"); entry != nil {
		t.Error("the value was stored")
	}
	if got := c.counted(c.server.metrics.refused, "body"); got != 2 {
		t.Errorf("%d refusals counted, want 2", got)
	}
}

// An empty 200 would be a promise: whoever puts a key takes it for one.
func TestWriteThatTheServersEndInterruptsIsNotAcknowledged(t *testing.T) {
	t.Parallel() // waits for stopTimeout
	for name, client := range map[string]func(*cell) *consul.Client{"loopback": (*cell).consul, "socket": (*cell).admin} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCell(t)
			answered := make(chan error, 1)
			go func() {
				_, err := client(c).KV().Put(&consul.KVPair{Key: "hangs", Value: []byte("v")}, nil)
				answered <- err
			}()
			eventually(t, "the write is under way", func() bool { return c.raft.hanging.Load() > 0 })
			c.stop()
			if err := <-answered; err == nil {
				t.Error("the write was acknowledged")
			}
			if got := c.counted(c.server.metrics.requests, "/v1/kv/", "PUT", "none"); got != 1 {
				t.Errorf("%d requests counted as not answered", got)
			}
		})
	}
}

func FuzzKVParameters(f *testing.F) {
	for _, query := range []string{"", "cas=1", "cas=1&flags=2", "recurse", "acquire=s", "cas=1&recurse", "flags=18446744073709551615", "index=5&wait=10ms&stale", "max_stale=1h", "node-meta=a:b"} {
		f.Add("a/b", query)
	}
	f.Fuzz(func(t *testing.T, key, query string) {
		args, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		if put, err := kvPutOf(key, args); err == nil {
			if put.Entry.Key != key || key == "" || (put.Verb == state.CAS) != args.Has("cas") {
				t.Errorf("PUT %q?%s: %+v", key, query, put)
			}
		}
		if del, err := kvDeleteOf(key, args); err == nil && del.Verb != state.DeleteTree && key == "" {
			t.Errorf("DELETE ?%s removes %+v", query, del)
		}
		options, err := parseRead(args)
		if err == nil && (options.wait < 0 || options.wait > maxWait || options.maxStale < 0) {
			t.Errorf("?%s: %+v", query, options)
		}
		if err == nil && options.mode == consistent && args.Has("stale") {
			t.Errorf("?%s is both", query)
		}
	})
}

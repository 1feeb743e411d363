package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"holdfast/internal/peer"
	"holdfast/internal/state"
)

// fakeJoiner certifies whom it is told to.
type fakeJoiner struct{ join func() error }

func (fakeJoiner) Authority() ([]byte, string)           { return nil, strings.Repeat("0", 64) }
func (fakeJoiner) Expand(nodes string) ([]string, error) { return []string{nodes}, nil }
func (fakeJoiner) Allow(string, netip.Addr) error        { return nil }
func (f *fakeJoiner) Join(context.Context, string, []byte) (JoinAnswer, error) {
	return JoinAnswer{Joined: peer.Joined{Certificate: []byte("signed"), GossipKey: []byte("secret")}}, f.join()
}

// A use is taken by who gets what it is for. Who is refused keeps it, and who
// loses it to another at the last moment gets nothing of what was signed.
func TestATokenIsUsedByWhoIsLetInAndByNobodyElse(t *testing.T) {
	joiner := &fakeJoiner{}
	c := newCell(t, func(_ *Config, d *Deps) { d.Joiner = joiner })
	const secret = "s3cret"
	put := func(uses int, verb state.Verb) {
		t.Helper()
		value, err := json.Marshal(JoinToken{ID: "1", Uses: uses, Expires: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		c.apply(state.PutDocument{Verb: verb, Document: state.Document{Kind: joinTokenKind, Key: sumOf(secret), Value: value}})
	}
	left := func() int {
		t.Helper()
		d, _ := c.store.Snapshot().Document(nil, joinTokenKind, sumOf(secret))
		if d == nil {
			t.Fatal("the token is gone")
		}
		token, err := joinTokenOf(d)
		if err != nil {
			t.Fatal(err)
		}
		return token.Uses
	}
	ask := func(what string, want, uses int) string {
		t.Helper()
		body, err := json.Marshal(JoinRequest{Node: "n2", Token: secret, Request: []byte("a request")})
		if err != nil {
			t.Fatal(err)
		}
		status, _, text := c.do("POST", joinPath, strings.NewReader(string(body)))
		if status != want || left() != uses {
			t.Errorf("%s: status %d with %d uses left, want %d with %d: %s", what, status, left(), want, uses, text)
		}
		return text
	}
	put(1, state.Set)
	for _, c := range []struct {
		what   string
		err    error
		status int
		says   string
	}{
		{"a request that can't be signed", fmt.Errorf("peer: %w: is none", peer.ErrRequest), http.StatusBadRequest, "is none"},
		{"a node that is gone meanwhile", fmt.Errorf("%w: the file has no n2", ErrJoinRefused), http.StatusForbidden, "Permission denied: not let in: the file has no n2"},
		{"a file that is about to change", fmt.Errorf("%w: reload", ErrJoinLater), http.StatusConflict, "not now: reload"},
		{"nobody to ask for the gossip's key", fmt.Errorf("keys: %w", state.ErrNoLeader), http.StatusServiceUnavailable, noLeader},
		{"an authority that can't be read", errors.New("ca.key: permission denied"), http.StatusInternalServerError, "ca.key"},
	} {
		joiner.join = func() error { return c.err }
		if text := ask(c.what, c.status, 1); !strings.Contains(text, c.says) {
			t.Errorf("%s: it does not say %q: %s", c.what, c.says, text)
		}
	}
	joiner.join = func() error { put(1, state.Set); return nil } // meanwhile
	if text := ask("another is faster", http.StatusConflict, 1); strings.Contains(text, "certificate") {
		t.Errorf("it is sent all the same: %s", text)
	}
	c.raft.set(func(r *fakeRaft) { r.proposeErr = state.ErrNoLeader })
	joiner.join = func() error { return nil }
	if text := ask("no leader", http.StatusServiceUnavailable, 1); strings.Contains(text, "certificate") {
		t.Errorf("it is sent all the same: %s", text)
	}
	c.raft.set(func(r *fakeRaft) { r.proposeErr, r.barrierErr = nil, state.ErrNoLeader })
	ask("no leader to ask who used the token", http.StatusServiceUnavailable, 1)
	c.raft.set(func(r *fakeRaft) { r.barrierErr = nil })
	if text := ask("the last use", http.StatusOK, 0); !strings.Contains(text, "certificate") {
		t.Errorf("no certificate: %s", text)
	}
	ask("none is left", http.StatusForbidden, 0)
}

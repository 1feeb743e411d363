package raftstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"holdfast/internal/health"
)

// What a server does when its certificate, or the authority, is changed while it
// runs (internal/peer, Reload).

// conditionAuthority: a server of the cluster and this one do not believe each
// other's authority.
const conditionAuthority = "raftstore.authority"

// followTrust makes the connections that we dialled anew when they are to show
// another certificate, or the other end's is by an authority that is gone. No
// request is lost by it: those under way end on their old connection, and Raft's
// are replaced when no answer is awaited, of one server after the other.
func (e *engine) followTrust(ctx context.Context) {
	trust := e.store.config.Trust
	if trust == nil || e.store.config.Insecure {
		return
	}
	renewed := trust.Renewed()
	for {
		select {
		case <-renewed:
		case <-ctx.Done():
			return
		}
		renewed = trust.Renewed() // a change that comes while this one is followed
		e.store.log.Info("connections to the other servers are made anew: the certificate or the authority was changed")
		e.group.Go(func() { e.client.renew(ctx) })
		e.net.renewRaft(ctx)
	}
}

// askWhy dials the other servers while there is no leader, once a second: a
// server without a vote dials nobody else, and would not hear that it is its
// certificate that is not believed. Only watch calls it.
func (e *engine) askWhy() {
	if e.store.config.Trust == nil || time.Since(e.asked) < e.store.times.plan {
		return
	}
	e.asked = time.Now()
	ctx, cancel := context.WithTimeout(e.net.ending, e.store.times.transport/2)
	var group sync.WaitGroup
	for _, m := range e.members() {
		if m.ID != e.store.config.NodeID {
			group.Go(func() { _, _ = e.askProgress(ctx, m) })
		}
	}
	e.group.Go(func() {
		defer cancel()
		group.Wait()
	})
}

// distrusted raises the condition about a server whose authority is not ours.
func (s *Store) distrusted(name, reason string) {
	if name == "" {
		name = "another server"
	}
	now := time.Now()
	if s.distrustedAt.Swap(&now) != nil {
		return // it stands already; which of several servers comes next changes all the time
	}
	s.board.Raise(conditionAuthority, health.Warning, fmt.Sprintf(
		"%s and this server do not trust each other's authority: %s. Whichever was away while the authority was changed needs new files: "+
			"issue them (holdfast pki issue), copy them to its /etc/holdfast/pki and restart its agent", name, reason))
}

func (s *Store) forgetDistrusted() {
	if at := s.distrustedAt.Load(); at != nil && time.Since(*at) > strangerMemory {
		s.distrustedAt.CompareAndSwap(at, nil)
		s.board.Clear(conditionAuthority)
	}
}

// trustOf tells whom this server believes and by which authority its own
// certificate is; nil in plain text.
func (s *Store) trustOf() *Trusted {
	if s.config.Trust == nil || s.config.Insecure {
		return nil
	}
	authorities, issuer := s.config.Trust.Authorities()
	return &Trusted{Authorities: authorities, Issuer: issuer, Expires: s.config.Trust.Expires()}
}

// Trusted is whom a server believes, by peer.AuthorityID.
type Trusted struct {
	Authorities []string  `json:"authorities"`
	Issuer      string    `json:"issuer"`  // of its own certificate
	Expires     time.Time `json:"expires"` // its certificate
}

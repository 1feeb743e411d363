package raftstore

import (
	"errors"
	"fmt"
	"testing"

	"holdfast/internal/peer"
)

// dialled are the connections that a server made.
func (o *host) dialled() map[*stream]streamKind {
	n := o.store.engine.Load().net
	n.mu.Lock()
	defer n.mu.Unlock()
	list := map[*stream]streamKind{}
	for s := range n.open {
		if s.dialled != 0 {
			list[s] = s.dialled
		}
	}
	return list
}

// A server whose certificate was issued anew shows it on all connections that it
// makes, those that stand included. What clients see of it make upgrade-long
// measures.
func TestConnectionsAreMadeAnewWithANewCertificate(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.startAll()
	leader, follower := h.leader(), h.follower()
	follower.put("before", "it")
	for _, o := range []*host{leader, follower} {
		var old map[*stream]streamKind
		eventually(t, o.name+" has dialled the others", func() error {
			if old = o.dialled(); len(old) == 0 {
				return errors.New("nobody")
			}
			return nil
		})
		request := peer.Request{Identity: peer.Identity{Name: o.name, Role: peer.RoleServer}}
		if err := peer.Issue(h.ca, o.pki, request); err != nil {
			t.Fatal(err)
		}
		if r, err := o.store.config.Trust.Reload(); err != nil || !r.Certificate {
			t.Fatalf("%+v, %v", r, err)
		}
		eventually(t, o.name+" has new connections alone", func() error {
			for s := range o.dialled() {
				if kind, ok := old[s]; ok {
					return fmt.Errorf("one of %v is an old one", kind)
				}
			}
			return nil
		})
		follower.put("after/"+o.name, "it")
	}
}

package raftstore

import (
	"context"
	"fmt"
	"strings"
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
// makes, those that stand included. Who writes meanwhile sees nothing of it, and
// the leader stays.
func TestConnectionsAreMadeAnewWithANewCertificate(t *testing.T) {
	h := newHosts(t, 3, 3)
	h.timing = 10 // what is to be seen is the change of the certificates, not a busy machine
	h.startAll()
	leader, follower := h.leader(), h.follower()
	follower.put("before", "it")
	term, from := leader.store.Status().Term, len(leader.log.String())
	stop := h.write(follower)
	for _, name := range h.order {
		o := h.all[name]
		old := o.dialled()
		if o == leader && len(old) == 0 {
			t.Error("the leader has dialled nobody")
		}
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
	if count := stop(); count == 0 {
		t.Error("nothing was written meanwhile")
	}
	if now := leader.store.Status().Term; now != term {
		t.Errorf("an election: term %d, was %d", now, term)
	}
	if log := leader.log.String()[from:]; strings.Contains(log, "failed to heartbeat") {
		t.Errorf("heartbeats failed:\n%s", log)
	}
}

// write sets keys through a server until stop is called, which gives how many;
// none may fail.
func (h *hosts) write(o *host) (stop func() int) {
	ctx, cancel := context.WithCancel(h.t.Context())
	written := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			if _, err := o.tryPut(fmt.Sprint("meanwhile/", n%100), "it"); err != nil {
				h.t.Errorf("write %d: %v", n, err)
			}
		}
		written <- n
	}()
	return func() int {
		cancel()
		return <-written
	}
}

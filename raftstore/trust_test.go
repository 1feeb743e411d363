package raftstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/peer"
	"holdfast/lab/stall"
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
	h.timing = calm // what is to be seen is the change of the certificates, not a busy machine
	h.startAll()
	h.settled("fb1 fb2 fb3", "")
	h.follower().put("before", "it")
	lease, machine := h.leader().store.times.lease, stall.Test(t, t.TempDir())
	// Only one stall that is longer than the lease costs an election: many short
	// ones in the many seconds of a round cost none.
	machine.Repeat(t, "certificates are changed", 3, lease, func() (from, to time.Time, missed error) {
		began := time.Now()
		missed = changeCertificates(t, h)
		longest := stall.Span{From: began, To: began}
		for _, s := range machine.Spans(began, time.Now()) {
			if s.To.Sub(s.From) > longest.To.Sub(longest.From) {
				longest = s
			}
		}
		return longest.From, longest.To, missed
	})
}

// changeCertificates issues new ones to all servers. The error is what somebody
// saw of it.
func changeCertificates(t *testing.T, h *hosts) error {
	t.Helper()
	leader := h.leader()
	follower := h.besides(leader)[0]
	term, from := leader.store.Status().Term, len(leader.log.String())
	stop := write(t, follower)
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
	count, missed := stop()
	if count == 0 {
		t.Error("nothing was written meanwhile")
	}
	if now := leader.store.Status().Term; now != term {
		missed = errors.Join(missed, fmt.Errorf("an election: term %d, was %d", now, term))
	}
	if log := leader.log.String()[from:]; strings.Contains(log, "failed to heartbeat") {
		missed = errors.Join(missed, fmt.Errorf("heartbeats failed:\n%s", log))
	}
	return missed
}

// write sets keys through a server until stop is called, which gives how many, and
// those that failed.
func write(t *testing.T, o *host) (stop func() (int, error)) {
	ctx, cancel := context.WithCancel(t.Context())
	var written sync.WaitGroup
	n, failed := 0, error(nil)
	written.Go(func() {
		for ; ctx.Err() == nil; n++ {
			if _, err := o.tryPut(fmt.Sprint("meanwhile/", n%100), "it"); err != nil {
				failed = errors.Join(failed, fmt.Errorf("write %d: %w", n, err))
			}
		}
	})
	return func() (int, error) {
		cancel()
		written.Wait()
		return n, failed
	}
}

package logrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Before an address goes to another node, the sessions of the clients that came
// to it end as at the relay's own end: what they sent is stored and answered, so
// that they send nothing of it again there. New ones wait until the address is
// gone (hold.go). Afterwards the packets of both would go to the other node.
const (
	// LeavePath has sessions end: POST, with address=A for each.
	LeavePath = Root + "leave"
	// leaveMost is how long Leave waits for their ends: a client that has more
	// all the time is heard out for hearOutMost, and then its answers are read.
	leaveMost = 2500 * time.Millisecond
	// holdFor is how long a new session waits for the address to go. It may not
	// go, since nobody takes it.
	holdFor = 5 * time.Second
)

// sessions knows which clients are here by the address they came to. Its zero
// value knows none; its methods may be called from any goroutine.
type sessions struct {
	mu      sync.Mutex
	open    map[netip.Addr]map[*guest]bool
	listed  map[netip.Addr]bool      // was an interface's while it had sessions
	leaving map[netip.Addr]time.Time // until when it may go; the zero Addr: every one
	// leftLocal are addresses that were an interface's when they were about to go.
	leftLocal map[netip.Addr]bool
}

// guest is a client's connection.
type guest struct {
	end  context.CancelFunc
	left chan struct{}
}

// await blocks while a session at an address may not begin, since that is about
// to go, or until ctx ends.
func (s *sessions) await(ctx context.Context, at netip.Addr) {
	for wait := s.wait(at); wait > 0 && ctx.Err() == nil; wait = s.wait(at) {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// wait is for how long a session at an address may not begin.
func (s *sessions) wait(at netip.Addr) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held(at, time.Now())
}

// enter begins a session with a client that came to an address; ok is false if
// that is about to go. Its context ends when the session is to; left says that it
// has.
func (s *sessions) enter(ctx context.Context, at netip.Addr) (_ context.Context, left func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held(at, time.Now()) > 0 {
		return nil, nil, false
	}
	ctx, end := context.WithCancel(ctx)
	own := &guest{end, make(chan struct{})}
	if s.open == nil {
		s.open = map[netip.Addr]map[*guest]bool{}
	}
	if s.open[at] == nil {
		s.open[at] = map[*guest]bool{}
	}
	s.open[at][own] = true
	return ctx, func() {
		end()
		close(own.left)
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(s.open[at], own); len(s.open[at]) == 0 {
			delete(s.open, at)
			delete(s.listed, at)
		}
	}, true
}

// sawLocal says which addresses are an interface's, now that one or (the zero
// Addr) all are about to go.
func (s *sessions) sawLocal(at netip.Addr, local map[netip.Addr]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leftLocal == nil {
		s.leftLocal = map[netip.Addr]bool{}
	}
	for address := range local {
		if !at.IsValid() || address == at {
			s.leftLocal[address] = true
		}
	}
}

// wasLocal tells whether an address was an interface's when it was last about to
// go.
func (s *sessions) wasLocal(at netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leftLocal[at]
}

// stays says that an address was about to go, and is an interface's still.
func (s *sessions) stays(at netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listed == nil {
		s.listed = map[netip.Addr]bool{}
	}
	s.listed[at] = true
}

// held is for how long a new session at an address waits. s.mu is held.
func (s *sessions) held(at netip.Addr, now time.Time) time.Duration {
	var wait time.Duration
	for _, a := range []netip.Addr{at, {}} {
		until, ok := s.leaving[a]
		if left := until.Sub(now); !ok {
			continue
		} else if left > 0 {
			wait = max(wait, left)
		} else {
			delete(s.leaving, a)
		}
	}
	return wait
}

// leave has the sessions at an address end, and new ones wait until a time. The
// zero Addr means all addresses.
func (s *sessions) leave(at netip.Addr, until time.Time) (ended []*guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving == nil {
		s.leaving = map[netip.Addr]time.Time{}
	}
	s.leaving[at] = until
	for address, list := range s.open {
		if at.IsValid() && address != at {
			continue
		}
		for one := range list {
			one.end()
			ended = append(ended, one)
		}
	}
	return ended
}

// gone has those sessions end whose address was an interface's and is none's any
// more, and returns how many these are of each. Addresses that were never on an
// interface can be local, too: by a route.
func (s *sessions) gone(local map[netip.Addr]bool) map[netip.Addr]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := map[netip.Addr]int{}
	for at, list := range s.open {
		if local[at] {
			if s.listed == nil {
				s.listed = map[netip.Addr]bool{}
			}
			s.listed[at] = true
			continue
		}
		if !s.listed[at] {
			continue
		}
		delete(s.listed, at)
		count[at] = len(list)
		for one := range list {
			one.end()
		}
	}
	return count
}

// some tells whether there is a session.
func (s *sessions) some() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open) > 0
}

// Leave has the RELP sessions of clients end that came to one of these addresses,
// which are about to go to another node; no addresses mean all. It blocks until
// they have ended, for 2.5 s at most or until ctx ends, and returns how many
// there were. New sessions at these addresses wait for five seconds.
func (s *Server) Leave(ctx context.Context, addrs ...netip.Addr) int {
	until := time.Now().Add(holdFor)
	if len(addrs) == 0 {
		addrs = []netip.Addr{{}}
	}
	local, err := s.localAddresses()
	if err != nil {
		s.log.Error("which addresses this machine has can't be seen", "error", err)
	}
	var ended []*guest
	for _, at := range addrs {
		s.sessions.sawLocal(at.Unmap(), local)
		ended = append(ended, s.sessions.leave(at.Unmap(), until)...)
	}
	ctx, cancel := context.WithTimeout(ctx, leaveMost)
	defer cancel()
	late := 0
	for _, one := range ended {
		select {
		case <-one.left:
			continue
		default:
		}
		select {
		case <-one.left:
		case <-ctx.Done():
			late++
		}
	}
	if len(ended) > 0 {
		s.log.Info("sessions ended, since their address is about to go to another node", "addresses", addrs, "sessions", len(ended), "late", late)
	}
	return len(ended)
}

// noteAddresses ends the sessions whose address has gone: their clients' packets
// come here no more.
func (s *Server) noteAddresses() {
	if !s.sessions.some() {
		return
	}
	local, err := s.localAddresses()
	if err != nil {
		s.log.Error("which addresses this machine has can't be seen", "error", err)
		return
	}
	for at, n := range s.sessions.gone(local) {
		s.log.Info("sessions end: their address has gone from this machine", "address", at, "sessions", n)
	}
}

// localAddresses are the addresses of this machine's interfaces.
func (s *Server) localAddresses() (map[netip.Addr]bool, error) {
	list, err := s.interfaces()
	if err != nil {
		return nil, err
	}
	local := map[netip.Addr]bool{}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			local[p.Addr().Unmap()] = true
		}
	}
	return local, nil
}

// serveLeave answers LeavePath with how many sessions there were.
func (s *Server) serveLeave(w http.ResponseWriter, r *http.Request) {
	var addrs []netip.Addr
	for _, text := range r.URL.Query()["address"] {
		at, err := netip.ParseAddr(text)
		if err != nil {
			http.Error(w, fmt.Sprintf("address %q: want an IP address", text), http.StatusBadRequest)
			return
		}
		addrs = append(addrs, at)
	}
	if len(addrs) == 0 {
		http.Error(w, "address: want one IP address at least", http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]int{"sessions": s.Leave(r.Context(), addrs...)}) // who asked may be gone
}

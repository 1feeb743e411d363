package logrelay

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Before an address goes to another node, the RELP sessions of the clients that
// came to it end as at the relay's own end: what they sent is stored and answered,
// so that they send nothing of it again there. New ones wait until the address is
// gone (hold.go). Afterwards the packets of both would go to the other node.
//
// Senders of syslog by TCP and TLS are told nothing of what is stored and send
// nothing again, so all that comes of them is taken until the address has gone;
// but our half of their connection is closed (streamConn.dismiss), so that those who
// look go elsewhere with their next line.
const (
	// LeavePath has sessions end: POST, with address=A for each, in=DURATION if they
	// go later than now (LeaveAhead at most), and by=NODE, who says so.
	LeavePath = Root + "leave"
	// LeaveAhead is how long before an address goes its clients may be heard out.
	LeaveAhead = holdFor - time.Second
	// leaveMost is how long Leave waits for their ends: a client that has more
	// all the time is heard out for hearOutMost, and then its answers are read.
	leaveMost = 2500 * time.Millisecond
	// holdFor is how long a new session waits for the address to go. It may not
	// go, since nobody takes it. Who says so again meanwhile has it wait for holdMost
	// at most, and then not before restFor: else it could for ever.
	holdFor  = 5 * time.Second
	holdMost = 2 * holdFor
	restFor  = 2 * time.Second
	// dismissAhead is how long before the address goes senders by TCP and TLS are
	// asked to go elsewhere: those who do so earlier come back here. The word of it
	// was on its way for some part of that.
	dismissAhead = 200 * time.Millisecond
)

// sessions knows which clients are here by the address they came to. Its zero
// value knows none; its methods may be called from any goroutine.
type sessions struct {
	mu      sync.Mutex
	open    map[netip.Addr]map[*guest]bool
	listed  map[netip.Addr]bool      // was an interface's while it had sessions
	missed  map[netip.Addr]bool      // and was none's at the last look
	leaving map[netip.Addr]*mayLeave // the zero Addr: of every one
	// leftLocal are addresses that were an interface's when they were about to go.
	leftLocal map[netip.Addr]bool
}

// mayLeave is the time in which an address may go, and in which new RELP sessions
// are held for that, which is less: for holdMost at most, and then not for restFor.
type mayLeave struct {
	from, until time.Time // they are held
	goes        time.Time // it may go until then
	streams     bool      // streams are asked to go elsewhere, too
}

// guest is a client's connection.
type guest struct {
	end  context.CancelFunc
	left chan struct{}
	// dismiss asks a sender by TCP or TLS to go elsewhere, and says whether this is
	// the first time; nil: it speaks RELP.
	dismiss func() (first bool)
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
	ctx, left = s.admit(ctx, at, nil)
	return ctx, left, true
}

// enterStream begins a session with a sender by TCP or TLS, as enter does. It
// never waits, and dismisses it if its address is about to go.
func (s *sessions) enterStream(ctx context.Context, at netip.Addr, dismiss func() bool) (_ context.Context, left func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, left = s.admit(ctx, at, dismiss)
	if s.dismisses(at, time.Now()) {
		s.expect(at)
		dismiss()
	}
	return ctx, left
}

// expect has the sessions at an address end when it has gone, though nobody has
// looked yet whether it is an interface's: it was when it was about to go. s.mu is
// held.
func (s *sessions) expect(at netip.Addr) {
	if s.leftLocal[at] {
		s.list(at)
	}
}

// list notes that an address is an interface's. s.mu is held.
func (s *sessions) list(at netip.Addr) {
	if s.listed == nil {
		s.listed = map[netip.Addr]bool{}
	}
	s.listed[at] = true
}

// admit notes a session. s.mu is held.
func (s *sessions) admit(ctx context.Context, at netip.Addr, dismiss func() bool) (_ context.Context, left func()) {
	ctx, end := context.WithCancel(ctx)
	own := &guest{end, make(chan struct{}), dismiss}
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
			delete(s.missed, at)
		}
	}
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
	s.list(at)
}

// held is for how long a new RELP session at an address waits. s.mu is held.
func (s *sessions) held(at netip.Addr, now time.Time) time.Duration {
	var wait time.Duration
	for _, a := range []netip.Addr{at, {}} {
		if w := s.leaving[a]; w == nil {
			continue
		} else if now.Before(w.until) {
			wait = max(wait, w.until.Sub(now))
		} else if !now.Before(w.until.Add(restFor)) && !now.Before(w.goes) {
			delete(s.leaving, a)
		}
	}
	return wait
}

// mayGo tells whether an address is about to go, as somebody said. s.mu is held.
func (s *sessions) mayGo(at netip.Addr, now time.Time) bool {
	for _, a := range []netip.Addr{at, {}} {
		if w := s.leaving[a]; w != nil && now.Before(w.goes) {
			return true
		}
	}
	return false
}

// dismisses tells whether a new stream at an address is to go elsewhere. s.mu is
// held.
func (s *sessions) dismisses(at netip.Addr, now time.Time) bool {
	for _, a := range []netip.Addr{at, {}} {
		if w := s.leaving[a]; w != nil && w.streams && now.Before(w.goes) {
			return true
		}
	}
	return false
}

// hold has an address be one that may go until a time. Who says so while RELP
// sessions are not held again is believed as to all else. s.mu is held.
func (s *sessions) hold(at netip.Addr, now, until time.Time) {
	w := s.leaving[at]
	if w == nil || !now.Before(w.until.Add(restFor)) {
		if s.leaving == nil {
			s.leaving = map[netip.Addr]*mayLeave{}
		}
		s.leaving[at] = &mayLeave{from: now, until: until, goes: until, streams: w != nil && w.streams && now.Before(w.goes)}
		return
	}
	w.goes = later(w.goes, until)
	if most := w.from.Add(holdMost); now.Before(w.until) {
		if until.After(most) {
			until = most
		}
		w.until = later(w.until, until)
	}
}

// later is the later of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// leave has the RELP sessions at an address end, and new ones wait until a time.
// The zero Addr means all addresses.
func (s *sessions) leave(at netip.Addr, until time.Time) (ended []*guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold(at, time.Now(), until)
	for one := range s.at(at) {
		if one.dismiss == nil {
			one.end()
			ended = append(ended, one)
		}
	}
	return ended
}

// dismiss asks the senders by TCP and TLS at an address to go elsewhere, and says
// how many had not been asked before; new ones are asked, too, while it may go. The
// zero Addr means all addresses.
func (s *sessions) dismiss(at netip.Addr) int {
	s.mu.Lock()
	if w := s.leaving[at]; w != nil {
		w.streams = true
	}
	var list []func() bool
	for one, address := range s.at(at) {
		if one.dismiss != nil {
			list = append(list, one.dismiss)
			s.expect(address)
		}
	}
	s.mu.Unlock()
	count := 0
	for _, dismiss := range list {
		if dismiss() {
			count++
		}
	}
	return count
}

// at gives the guests at an address, and which that is; the zero Addr means all
// addresses. s.mu is held.
func (s *sessions) at(at netip.Addr) iter.Seq2[*guest, netip.Addr] {
	return func(yield func(*guest, netip.Addr) bool) {
		for address, list := range s.open {
			if at.IsValid() && address != at {
				continue
			}
			for one := range list {
				if !yield(one, address) {
					return
				}
			}
		}
	}
}

// gone has those sessions end whose address was an interface's and is none's any
// more, and returns how many these are of each. Streams, which lose a line by it, end
// at the second look in a row, unless the address was to go: one may be away for a
// moment. Addresses that were never on an interface can be local, too: by a route.
func (s *sessions) gone(local map[netip.Addr]bool) map[netip.Addr]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, count := time.Now(), map[netip.Addr]int{}
	if s.missed == nil {
		s.missed = map[netip.Addr]bool{}
	}
	for at, list := range s.open {
		if local[at] {
			s.list(at)
			delete(s.missed, at)
			continue
		}
		if !s.listed[at] {
			continue
		}
		sure := s.missed[at] || s.mayGo(at, now)
		for one := range list {
			if sure || one.dismiss == nil {
				one.end()
				count[at]++
			}
		}
		if s.missed[at] = true; sure {
			delete(s.listed, at)
			delete(s.missed, at)
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
// which are about to go to another node; no addresses mean all. New sessions at them
// wait for five seconds. Senders by TCP and TLS are asked to go elsewhere shortly before
// the addresses go (in is how long that takes, LeaveAhead at most), or where in is 0
// when the RELP sessions have ended, and read on until the addresses have gone. It
// blocks until both is done, for 2.5 s or in, or until ctx ends, and returns how many
// RELP sessions there were.
func (s *Server) Leave(ctx context.Context, in time.Duration, addrs ...netip.Addr) int {
	goes := time.NewTimer(in - dismissAhead)
	defer goes.Stop()
	until, most := time.Now().Add(holdFor), time.Now().Add(leaveMost)
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
	late := 0
	if in > 0 { // streams are asked in time, whatever RELP does
		select {
		case <-goes.C:
		case <-ctx.Done():
		}
	} else {
		late = lateOf(ctx, ended, most)
	}
	streams := 0
	for _, at := range addrs {
		streams += s.sessions.dismiss(at.Unmap())
	}
	if in > 0 {
		late = lateOf(ctx, ended, most)
	}
	if len(ended)+streams > 0 {
		s.log.Info("sessions ended, since their address is about to go to another node",
			"addresses", addrs, "sessions", len(ended), "late", late, "streams", streams)
	}
	return len(ended)
}

// lateOf waits for sessions to leave, until a time, and says how many did not.
func lateOf(ctx context.Context, ended []*guest, until time.Time) (late int) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
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
	return late
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
	args := r.URL.Query()
	var addrs []netip.Addr
	for _, text := range args["address"] {
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
	in, err := time.ParseDuration(cmp.Or(args.Get("in"), "0s"))
	if err != nil || in < 0 || in > LeaveAhead {
		http.Error(w, fmt.Sprintf("in %q: want a duration from 0s to %v", args.Get("in"), LeaveAhead), http.StatusBadRequest)
		return
	}
	s.log.Info("addresses are about to go to another node", "addresses", addrs, "in", in, "by", cmp.Or(args.Get("by"), "an admin"))
	_ = json.NewEncoder(w).Encode(map[string]int{"sessions": s.Leave(r.Context(), in, addrs...)}) // who asked may be gone
}

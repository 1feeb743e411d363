package logrelay

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var someAddress, otherAddress = netip.MustParseAddr("10.1.0.101"), netip.MustParseAddr("10.1.0.102")

// mayGo has an address be one that may go until a time, whatever was said before;
// never, if that is zero.
func mayGo(s *sessions, at netip.Addr, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until.IsZero() {
		delete(s.leaving, at)
		return
	}
	if s.leaving == nil {
		s.leaving = map[netip.Addr]*mayLeave{}
	}
	w := s.leaving[at]
	s.leaving[at] = &mayLeave{from: time.Now(), until: until, goes: until, streams: w != nil && w.streams}
}

// TestWhoSaysAllTheTimeThatAnAddressGoesHoldsNobodyForEver, in virtual time: a
// session at it begins within holdMost, and for restFor all do. It fails if each
// word counts from anew; and if a second word shortens what the first said.
func TestWhoSaysAllTheTimeThatAnAddressGoesHoldsNobodyForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sessions
		began := time.Now()
		s.leave(someAddress, began.Add(holdFor))
		if s.leave(someAddress, began.Add(time.Second)); s.wait(someAddress) != holdFor {
			t.Errorf("a second word makes it %v", s.wait(someAddress))
		}
		for time.Since(began) < time.Minute {
			s.leave(someAddress, time.Now().Add(holdFor))
			held := s.wait(someAddress) > 0
			if at := time.Since(began) % (holdMost + restFor); held != (at < holdMost) {
				t.Errorf("after %v: held %v", time.Since(began), held)
			}
			time.Sleep(time.Second)
		}
	})
}

// TestStreamsAreSentElsewhereForAsLongAsTheirAddressMayGo, in virtual time: word of it
// comes again and again, and RELP sessions are held anew meanwhile. It fails if streams
// are then read as though nobody had said it, until they are next dismissed; and if they
// are dismissed once the address has stayed.
func TestStreamsAreSentElsewhereForAsLongAsTheirAddressMayGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sessions
		asks := func() (asked bool) {
			_, left := s.enterStream(t.Context(), someAddress, func() bool {
				asked = true
				return true
			})
			left()
			return asked
		}
		s.leave(someAddress, time.Now().Add(holdFor))
		s.dismiss(someAddress)
		time.Sleep(holdFor + restFor/2)
		s.leave(someAddress, time.Now().Add(holdFor))
		time.Sleep(holdFor - time.Second)
		if s.leave(someAddress, time.Now().Add(holdFor)); s.wait(someAddress) == 0 || !asks() {
			t.Errorf("RELP is held for %v; a stream is asked: %v", s.wait(someAddress), asks())
		}
		time.Sleep(holdFor + restFor)
		if s.leave(someAddress, time.Now().Add(holdFor)); asks() {
			t.Error("a stream is asked though the address stayed")
		}
	})
}

// TestANewSessionWaitsWhileItsAddressMayGo, in virtual time, and is served when
// the address stayed; those at others begin at once, unless all may go.
func TestANewSessionWaitsWhileItsAddressMayGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sessions
		enters := func(at netip.Addr) time.Duration {
			began := time.Now()
			s.await(t.Context(), at)
			_, left, ok := s.enter(t.Context(), at)
			if !ok {
				t.Fatal("it does not begin though its address stays")
			}
			left()
			return time.Since(began)
		}
		s.leave(someAddress, time.Now().Add(holdFor))
		if _, _, ok := s.enter(t.Context(), someAddress); ok {
			t.Error("it begins though its address may go")
		}
		if took := enters(otherAddress); took != 0 {
			t.Errorf("at another address it waits for %v", took)
		}
		if took := enters(someAddress); took != holdFor {
			t.Errorf("it waits for %v, want %v", took, holdFor)
		}
		if took := enters(someAddress); took != 0 {
			t.Errorf("though the address stayed it waits for %v", took)
		}
		s.leave(netip.Addr{}, time.Now().Add(holdFor))
		if took := enters(otherAddress); took != holdFor {
			t.Errorf("when all may go it waits for %v", took)
		}
		s.leave(someAddress, time.Now().Add(holdFor))
		ended, end := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, end)
		began := time.Now()
		if s.await(ended, someAddress); time.Since(began) != time.Second {
			t.Errorf("at the relay's end it waits for %v", time.Since(began))
		}
		time.Sleep(holdFor + restFor)
		if s.wait(someAddress); s.some() || len(s.leaving) > 0 {
			t.Errorf("left behind: %v, %v", s.open, s.leaving)
		}
	})
}

// TestSessionsEndWhenTheirAddressIsNoInterfacesAnyMore: not those at an address
// that never was, since a route can make one local.
func TestSessionsEndWhenTheirAddressIsNoInterfacesAnyMore(t *testing.T) {
	var s sessions
	on, left, _ := s.enter(t.Context(), someAddress)
	defer left()
	routed, leftRouted, _ := s.enter(t.Context(), otherAddress)
	defer leftRouted()
	s.gone(map[netip.Addr]bool{someAddress: true})
	if on.Err() != nil || routed.Err() != nil {
		t.Fatal("a session ended while its address is here")
	}
	if count := s.gone(nil); count[someAddress] != 1 || len(count) != 1 {
		t.Errorf("ended: %v", count)
	}
	if on.Err() == nil {
		t.Error("the session stays though its address has gone")
	}
	if routed.Err() != nil {
		t.Error("a session ended at an address that no interface ever had")
	}
}

// TestBeforeAnAddressGoesItsClientsHearOfAllTheySent: so they send none of it
// again at the other node. A relay that just closes leaves lines unanswered that
// it has stored.
func TestBeforeAnAddressGoesItsClientsHearOfAllTheySent(t *testing.T) {
	s, dir, stop := serve(t, nil)
	const clients, count = 5, 100
	var list []*sender
	for n := range clients {
		c, err := dial(s.Addrs("relp")[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.conn.Close()
		list = append(list, c)
		for k := range count {
			if _, err := c.conn.Write(c.session.AppendLine(nil, fmt.Appendf(nil, "<13>Nov 25 12:00:00 cn%d test: seq=%d.", n, k))); err != nil {
				t.Fatal(err)
			}
		}
	}
	answer := httptest.NewRecorder()
	s.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodPost, LeavePath+"?address=10.9.9.9", nil))
	if answer.Body.String() != "{\"sessions\":0}\n" {
		t.Errorf("an address of nobody: %s", answer.Body)
	}
	for _, in := range []string{"1h", "-1s", "soon"} {
		answer = httptest.NewRecorder()
		s.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodPost, LeavePath+"?address=127.0.0.1&in="+in, nil))
		if answer.Code != http.StatusBadRequest {
			t.Errorf("in %s: %d %s", in, answer.Code, answer.Body)
		}
	}
	s.quiet, s.patience = 2*time.Second, time.Minute // however slow this machine and its disk are
	answer = httptest.NewRecorder()
	s.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodPost, LeavePath+"?address=127.0.0.1", nil))
	if answer.Body.String() != fmt.Sprintf("{\"sessions\":%d}\n", clients) {
		t.Errorf("%s", answer.Body)
	}
	// Leave waits for them, but not for ever.
	eventually(t, time.Minute, "the sessions end", func() error {
		if s.sessions.some() {
			return fmt.Errorf("there are some")
		}
		return nil
	})
	for n, c := range list {
		_ = c.conn.SetReadDeadline(time.Now().Add(time.Minute))
		if err := c.read(0); err != nil || c.acked != count {
			t.Errorf("client %d: %d of %d lines are answered: %v", n, c.acked, count, err)
		}
		if _, err := c.conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("client %d: its session has not ended", n)
		} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			t.Errorf("client %d: its session has not ended: %v", n, err)
		}
	}
	stop()
	p := process{t: t, dir: dir}
	for n := range clients {
		if got := p.numbers(fmt.Sprint("cn", n)); len(got) != count {
			t.Errorf("client %d: %d lines are stored", n, len(got))
		}
	}
}

// TestTheRelayLooksWhetherItsAddressesAreStillHere: once a second, while it has
// sessions.
func TestTheRelayLooksWhetherItsAddressesAreStillHere(t *testing.T) {
	s, _, _ := prepare(t)
	var away atomic.Bool
	looked := make(chan struct{}, 1)
	s.interfaces = func() ([]net.Addr, error) {
		if away.Load() {
			return nil, nil
		}
		select {
		case looked <- struct{}{}:
		default:
		}
		return []net.Addr{&net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}, nil
	}
	run(t, s)
	c, err := dial(s.Addrs("relp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	select {
	case <-looked:
	case <-time.After(time.Minute):
		t.Fatal("nobody looks")
	}
	away.Store(true)
	eventually(t, time.Minute, "the session ends", func() error {
		if s.sessions.some() {
			return fmt.Errorf("there is a session")
		}
		return nil
	})
}

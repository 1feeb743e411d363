package logrelay

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast/lab/stall"
)

// TestAClientThatComesWhileItsAddressGoesIsAnsweredAndNotRead: as librelp does,
// it waits for the answer to its open before it sends anything. It fails if that
// is not answered, which would stall it for 90 s; if what it sends then is stored
// though the address has gone; and if its session is kept after that, or ends
// otherwise than by a reset.
func TestAClientThatComesWhileItsAddressGoesIsAnsweredAndNotRead(t *testing.T) {
	s, _, _ := prepare(t)
	var away atomic.Bool
	s.interfaces = func() ([]net.Addr, error) {
		if away.Load() {
			return nil, nil
		}
		return []net.Addr{&net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}, nil
	}
	run(t, s)
	machine := stall.Test(t, "")
	for _, goes := range []bool{false, true} {
		mayGo(&s.sessions, loopback, time.Time{}) // nobody said so for long
		asked, held := time.Now(), holdFor        // its sessions are held from here on, before Leave returns
		if goes {                                 // that is to be seen in time, however slow this machine is
			held *= 3
			mayGo(&s.sessions, loopback, asked.Add(held))
		}
		s.Leave(t.Context(), 0, loopback)
		began, before := time.Now(), s.journal.End()
		c, err := dial(s.Addrs("relp")[0].String()) // it reads the answer
		if err != nil {
			t.Fatal(err)
		}
		machine.Judge(t, "the answer to its open, which is not to wait for its address,", held, began, time.Now())
		away.Store(goes)
		c.line(t, 0)
		_ = c.conn.SetReadDeadline(time.Now().Add(time.Minute))
		err = c.read(0)
		switch {
		case !goes && (err != nil || c.acked != 1 || time.Since(asked) < holdFor):
			t.Errorf("its address stays: %d lines answered after %v, %v", c.acked, time.Since(asked), err)
		case goes && !errors.Is(err, syscall.ECONNRESET):
			t.Errorf("its address has gone: %d lines answered, %v; want a reset", c.acked, err)
		case goes && s.journal.End() != before:
			t.Error("its address has gone, and its line is stored here")
		}
		_ = c.conn.Close()
	}
}

// TestAHeldSessionWhoseAddressGoesAfterAllEnds: the address stayed, and goes later
// without a word, before anybody looked which addresses there are. It fails if the
// session is not known as one at an interface's address from its beginning.
func TestAHeldSessionWhoseAddressGoesAfterAllEnds(t *testing.T) {
	s := &Server{interfaces: func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: someAddress.AsSlice(), Mask: net.CIDRMask(24, 32)}}, nil
	}}
	local, err := s.localAddresses()
	if err != nil {
		t.Fatal(err)
	}
	s.sessions.sawLocal(someAddress, local)
	if s.hasLeft(someAddress) || s.hasLeft(otherAddress) {
		t.Fatal("an address has gone that is here, or was not here before")
	}
	session, left, ok := s.sessions.enter(t.Context(), someAddress)
	if !ok {
		t.Fatal("it may not begin")
	}
	defer left()
	if s.sessions.gone(nil); session.Err() == nil {
		t.Error("it goes on though its address has gone")
	}
}

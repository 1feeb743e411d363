package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"holdfast/internal/kernel/sockopt"
	"holdfast/internal/peer"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// leaving is a relay whose machine has 127.0.0.1 until away says otherwise.
func leaving(t *testing.T) (s *Server, dir string, away *atomic.Bool) {
	t.Helper()
	s, dir, _ = prepare(t)
	away = &atomic.Bool{}
	s.interfaces = func() ([]net.Addr, error) {
		if away.Load() {
			return nil, nil
		}
		return []net.Addr{&net.IPNet{IP: loopback.AsSlice(), Mask: net.CIDRMask(8, 32)}}, nil
	}
	return s, dir, away
}

// leavingBy is leaving with an input by TCP or TLS, and how a sender connects to it,
// once it runs.
func leavingBy(t *testing.T, input string) (s *Server, dir string, away *atomic.Bool, dial func() net.Conn) {
	t.Helper()
	s, dir, away = leaving(t)
	var config *tls.Config
	if input == "tls" {
		server, agent, _ := certificates(t)
		ours, err := peer.Load(server)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := peer.Load(agent)
		if err != nil {
			t.Fatal(err)
		}
		s.tls[0], s.settings.listen[viaTLS] = ours.Server(peer.RoleServer, peer.RoleAgent), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
		config = theirs.Client("").Clone()
		config.DynamicRecordSizingDisabled = true // as others do: 16 KiB in a record
	}
	return s, dir, away, func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", s.Addrs(input)[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if config != nil {
			secure := tls.Client(conn, config)
			if err := secure.HandshakeContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			return secure
		}
		return conn
	}
}

// inputs are those of streams, by name.
var inputs = map[string]uint8{"tcp": viaTCP, "tls": viaTLS}

// unread is a connection that is not read before its end comes: what is sent
// until then stays in the kernel.
type unread struct {
	net.Conn
	once   sync.Once
	end    chan struct{}
	stalls int       // reads of which the deadline passes before they begin
	by     time.Time // the deadline
}

func (c *unread) NetConn() net.Conn { return c.Conn }

func (c *unread) Read(b []byte) (int, error) {
	<-c.end
	if wait := time.Until(c.by); wait > 0 && c.stalls > 0 {
		c.stalls--
		<-time.After(wait + time.Millisecond)
	}
	return c.Conn.Read(b)
}

func (c *unread) SetReadDeadline(at time.Time) error {
	c.by = at
	if at.Before(time.Now()) {
		c.once.Do(func() { close(c.end) })
	}
	return c.Conn.SetReadDeadline(at)
}

// sends writes numbered lines by TCP.
func sends(t *testing.T, conn net.Conn, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if _, err := fmt.Fprintf(conn, "<13>Nov 25 12:00:00 cn1 test: seq=%d.\n", n); err != nil {
			t.Fatal(err)
		}
	}
}

// delivered waits until the relay's kernel has all that was written to a connection,
// and the sender's was told so: from then on it is the relay's.
func delivered(t *testing.T, conn net.Conn) {
	t.Helper()
	eventually(t, time.Minute, "the relay's kernel has what was sent", func() error {
		n, err := sockopt.Unacked(below(conn))
		if err == nil && n > 0 {
			err = fmt.Errorf("it lacks %d bytes", n)
		}
		return err
	})
}

// half wants the relay to close its half of a connection, or to keep it open.
func half(t *testing.T, conn net.Conn, closed bool) {
	t.Helper()
	wait := time.Minute
	if !closed {
		wait = 50 * time.Millisecond
	}
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	if _, err := conn.Read(make([]byte, 1)); (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) != closed {
		t.Errorf("the relay's half: %v; want it closed: %v", err, closed)
	}
}

// TestWhatAStreamSentIsInTheFileThoughNobodyReadItBeforeTheEnd: at a planned move
// the lines are in the relay's receive buffer and the sender's kernel has heard
// that they are there, so nobody sends them again. It fails if the connection is
// closed at the end without reading on; if what the kernel has is read for a time
// only; and if this process stood still until a read's deadline, and takes that for
// a sender that is quiet.
func TestWhatAStreamSentIsInTheFileThoughNobodyReadItBeforeTheEnd(t *testing.T) {
	for _, name := range []string{"tcp, its address goes", "tcp, the relay ends", "tls, its address goes", "tls, the relay ends"} {
		t.Run(name, func(t *testing.T) {
			input, what, _ := strings.Cut(name, ", ")
			moves := what == "its address goes"
			s, dir, away, dial := leavingBy(t, input)
			s.patience, s.endWithin = time.Nanosecond, time.Minute
			s.tap = func(conn net.Conn) net.Conn { return &unread{Conn: conn, end: make(chan struct{}), stalls: 2} }
			stop := run(t, s)
			conn := dial()
			eventually(t, time.Minute, "the session begins", func() error {
				if !s.sessions.some() {
					return errors.New("there is none")
				}
				return nil
			})
			const count = 200
			sends(t, conn, 0, count-1)
			if _, err := fmt.Fprintf(conn, "<13>Nov 25 12:00:00 cn1 test: seq=%d. half a line", count-1); err != nil {
				t.Fatal(err)
			}
			delivered(t, conn)
			if moves {
				s.Leave(t.Context(), 0, loopback)
				away.Store(true)
				eventually(t, time.Minute, "the session ends", func() error {
					if s.sessions.some() {
						return errors.New("there is one")
					}
					return nil
				})
			}
			stop()
			half(t, conn, true)
			p := process{t: t, dir: dir}
			if got := p.numbers("cn1"); len(got) != count {
				t.Errorf("%d lines are in the file, want %d", len(got), count)
			}
		})
	}
}

// TestAStreamWhoseAddressWentWhileLinesMayNotComeIsReadAfterwards: it is held back
// by holdfast logs pause, or a full disk. It fails if the connection is closed with
// what came on it, or if that is read for a time only, which thousands of connections
// need more of.
func TestAStreamWhoseAddressWentWhileLinesMayNotComeIsReadAfterwards(t *testing.T) {
	s, dir, away := leaving(t)
	s.patience = time.Nanosecond
	stop := run(t, s)
	conn, err := net.Dial("tcp", s.Addrs("tcp")[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, time.Minute, "the session begins", func() error {
		if !s.sessions.some() {
			return errors.New("there is none")
		}
		return nil
	})
	s.gate.pause(true)
	const count = 200
	sends(t, conn, 0, count)
	delivered(t, conn)
	s.Leave(t.Context(), 0, loopback)
	away.Store(true)
	eventually(t, time.Minute, "somebody sees that the address has gone", func() error {
		s.sessions.mu.Lock()
		defer s.sessions.mu.Unlock()
		if s.sessions.listed[loopback] {
			return errors.New("nobody did")
		}
		return nil
	})
	s.gate.pause(false)
	eventually(t, time.Minute, "the session ends", func() error {
		if s.sessions.some() {
			return errors.New("there is one")
		}
		return nil
	})
	stop()
	p := process{t: t, dir: dir}
	if got := p.numbers("cn1"); len(got) != count {
		t.Errorf("%d lines are in the file, want %d", len(got), count)
	}
}

// TestAStreamThatComesWhileItsAddressGoesIsReadAndSentElsewhere: it can't be held
// as RELP is, since it sends without having heard anything. It fails if what such
// a sender sends is not read; if our half of the connection stays open, so that a
// sender that looks for its end loses its next line to the other node; if it is
// closed before the first line is taken, which rsyslog takes for an attempt that
// failed; if a sender that doesn't look is read no more; if that closes the half of those at other
// addresses; and if senders are sent away when the address has stayed.
func TestAStreamThatComesWhileItsAddressGoesIsReadAndSentElsewhere(t *testing.T) {
	s, dir, away := leaving(t)
	stop := run(t, s)
	dials := func() net.Conn {
		conn, err := net.Dial("tcp", s.Addrs("tcp")[0].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	arrived := func(count int) {
		t.Helper()
		eventually(t, time.Minute, "lines are stored", func() error {
			if n := int(testutil.ToFloat64(s.metrics.input(viaTCP).lines)); n != count {
				return fmt.Errorf("%d of %d", n, count)
			}
			return nil
		})
	}
	before := dials()
	sends(t, before, 0, 1)
	arrived(1)
	s.Leave(t.Context(), 0, otherAddress)
	half(t, before, false)

	mayGo(&s.sessions, loopback, time.Now().Add(time.Hour)) // however slow this machine is
	s.Leave(t.Context(), 0, loopback)
	half(t, before, true)
	during := dials()
	half(t, during, false) // it has brought nothing yet
	sends(t, during, 1, 2)
	half(t, during, true)
	sends(t, during, 2, 11)
	sends(t, before, 11, 21)
	arrived(21)

	mayGo(&s.sessions, loopback, time.Time{}) // nobody took it
	after := dials()
	sends(t, after, 21, 22)
	arrived(22)
	half(t, after, false)
	sends(t, before, 22, 23)
	arrived(23)

	s.Leave(t.Context(), 0, loopback)
	half(t, after, true)
	away.Store(true)
	eventually(t, time.Minute, "the sessions end", func() error {
		if s.sessions.some() {
			return errors.New("there are some")
		}
		return nil
	})
	stop()
	p := process{t: t, dir: dir}
	if got := p.numbers("cn1"); len(got) != 23 {
		t.Errorf("%d lines are in the file, want 23", len(got))
	}
}

// TestAStreamThatCameWhileItsAddressWentEndsThoughNobodyHadLooked: the first look
// comes when the address has gone. It fails if such a session is not known as one
// at an interface's address: it would stay open for as long as its sender lives.
func TestAStreamThatCameWhileItsAddressWentEndsThoughNobodyHadLooked(t *testing.T) {
	var s sessions
	s.sawLocal(someAddress, map[netip.Addr]bool{someAddress: true})
	asked := map[string]int{}
	dismissing := func(name string) func() bool {
		return func() bool {
			asked[name]++
			return asked[name] == 1
		}
	}
	early, leftEarly := s.enterStream(t.Context(), someAddress, dismissing("early"))
	defer leftEarly()
	s.leave(someAddress, time.Now().Add(time.Hour))
	for _, want := range []int{1, 0} {
		if n := s.dismiss(someAddress); n != want {
			t.Errorf("%d are asked for the first time, want %d", n, want)
		}
	}
	late, leftLate := s.enterStream(t.Context(), someAddress, dismissing("late"))
	defer leftLate()
	routed, leftRouted := s.enterStream(t.Context(), otherAddress, dismissing("routed"))
	defer leftRouted()
	if asked["late"] != 1 || asked["routed"] != 0 {
		t.Errorf("asked: %v", asked)
	}
	s.gone(nil)
	for name, session := range map[string]context.Context{"early": early, "late": late} {
		if session.Err() == nil {
			t.Errorf("%s: it goes on though its address has gone", name)
		}
	}
	if routed.Err() != nil {
		t.Error("a session ended whose address did not go")
	}
}

// TestAStreamOutlastsAnAddressThatIsAwayForAMoment: its lines would be lost, while
// what was not answered of a RELP session comes again. It fails if one look is
// believed, or if two with another between them are.
func TestAStreamOutlastsAnAddressThatIsAwayForAMoment(t *testing.T) {
	var s sessions
	stream, left := s.enterStream(t.Context(), someAddress, func() bool { return true })
	defer left()
	relp, leftRELP, _ := s.enter(t.Context(), someAddress)
	defer leftRELP()
	here := map[netip.Addr]bool{someAddress: true}
	for _, local := range []map[netip.Addr]bool{here, nil, here, nil} {
		s.gone(local)
	}
	if stream.Err() != nil || relp.Err() == nil {
		t.Errorf("away for a moment: the stream %v, RELP %v; want only that ended", stream.Err(), relp.Err())
	}
	if s.gone(nil); stream.Err() == nil {
		t.Error("it goes on though its address has gone")
	}
}

// TestStreamsAreSentAwayShortlyBeforeTheirAddressGoes, in virtual time: who is sent
// away earlier connects to the same node again; RELP is heard out at once. It fails
// if streams are dismissed when it is announced; and if they are asked when the address
// has gone, since a RELP session takes long to end.
func TestStreamsAreSentAwayShortlyBeforeTheirAddressGoes(t *testing.T) {
	const soon = time.Second
	for _, one := range []struct{ in, relp, asked, blocks time.Duration }{
		{0, 0, 0, 0}, {LeaveAhead, 0, LeaveAhead - dismissAhead, LeaveAhead - dismissAhead},
		{0, time.Hour, leaveMost, leaveMost}, {soon, time.Hour, soon - dismissAhead, leaveMost},
		{LeaveAhead, time.Hour, LeaveAhead - dismissAhead, LeaveAhead - dismissAhead},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &Server{interfaces: func() ([]net.Addr, error) { return nil, nil }, log: slog.New(slog.DiscardHandler)}
			began, asked, heard := time.Now(), time.Duration(-1), time.Duration(-1)
			_, left := s.sessions.enterStream(t.Context(), someAddress, func() bool {
				asked = time.Since(began)
				return true
			})
			defer left()
			session, ended, _ := s.sessions.enter(t.Context(), someAddress)
			var relp sync.WaitGroup
			defer relp.Wait()
			relp.Go(func() {
				<-session.Done()
				heard = time.Since(began)
				time.Sleep(one.relp)
				ended()
			})
			n := s.Leave(t.Context(), one.in, someAddress)
			took := time.Since(began)
			synctest.Wait() // Leave may not wait for the session
			if n != 1 || asked != one.asked || heard != 0 || took != one.blocks {
				t.Errorf("%v: %d sessions end, after %v; the stream is asked after %v; it blocks for %v", one, n, heard, asked, took)
			}
		})
	}
}

// TestAMoveJustAfterOneThatWasNotIsBelieved, in virtual time: new RELP sessions aren't
// held again at once, but all else is done. It fails if streams that come are not sent
// elsewhere then, or go on for a second look when the address has gone.
func TestAMoveJustAfterOneThatWasNotIsBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sessions
		s.leave(someAddress, time.Now().Add(holdFor))
		time.Sleep(holdFor + restFor/2) // it stayed
		s.leave(someAddress, time.Now().Add(holdFor))
		s.dismiss(someAddress)
		time.Sleep(restFor)
		if _, left, ok := s.enter(t.Context(), someAddress); !ok {
			t.Error("RELP is held again at once")
		} else {
			left()
		}
		asked := false
		stream, left := s.enterStream(t.Context(), someAddress, func() bool {
			asked = true
			return true
		})
		defer left()
		s.gone(map[netip.Addr]bool{someAddress: true})
		if s.gone(nil); !asked || stream.Err() == nil {
			t.Errorf("a stream is asked: %v; when the address has gone it has ended: %v", asked, stream.Err())
		}
	})
}

// TestRsyslogTakesItsNextLineElsewhere: Debian's rsyslog, by TCP and by RFC 5425,
// has no line lost while its address may go, since it sees that our half is closed
// before it sends. It fails if the half is not closed; by RFC 5425 if a close_notify
// goes before, behind which rsyslog does not look; and if our half of a new
// connection is closed before its first line: rsyslog tries once more, and then
// throws lines away for 30 s.
func TestRsyslogTakesItsNextLineElsewhere(t *testing.T) {
	server, agent, _ := certificates(t)
	for _, input := range []string{"tcp", "tls"} {
		t.Run(input, func(t *testing.T) {
			var s *Server
			var dir, global, output string
			via := uint8(viaTCP)
			if input == "tls" {
				via = viaTLS
				s, dir = serveTLS(t, server)
				global, output = syslogTLS(s.Addrs("tls")[0].String(), agent)
			} else {
				s, dir, _ = serve(t, nil)
				at := s.Addrs("tcp")[0]
				output = fmt.Sprintf(`action(type="omfwd" target="%s" port="%d" protocol="tcp" template="RSYSLOG_ForwardFormat")`, at.Addr(), at.Port())
			}
			r := startRsyslog(t, global, output)
			p := process{t: t, dir: dir}
			lines := func(count int) {
				t.Helper()
				eventually(t, time.Minute, "all lines are in the file", func() error {
					if got := p.numbers("cn01"); len(got) != count {
						return fmt.Errorf("%d of %d: %q", len(got), count, r.complaints())
					}
					return nil
				})
			}
			r.log(0, 10)
			lines(10)
			connections := testutil.ToFloat64(s.metrics.input(via).connections)
			s.Leave(t.Context(), 0, loopback)
			mayGo(&s.sessions, loopback, time.Now().Add(time.Hour)) // however slow this machine is
			const spaced = 400
			pace := time.NewTicker(5 * time.Millisecond) // else it sends many at once
			defer pace.Stop()
			for n := range spaced {
				<-pace.C
				r.log(10+n, 1)
			}
			lines(10 + spaced)
			if n := testutil.ToFloat64(s.metrics.input(via).connections) - connections; n < 2 {
				t.Errorf("it connected %v times: it goes on by connections that were to end", n)
			}
		})
	}
}

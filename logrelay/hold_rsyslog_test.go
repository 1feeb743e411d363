package logrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// wandering stands for a virtual address as a network has it: a client's
// connection to a node that has the address no more is silent. The client hears
// nothing, until it sends: then the node that has it now answers with a reset.
type wandering struct {
	net.Listener
	holder atomic.Pointer[string] // an address with its port
	came   atomic.Int64           // connections
	lines  atomic.Bool            // a numbered line came by the first holder's connection
}

func newWandering(t *testing.T, to string) *wandering {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wandering{Listener: l}
	w.holder.Store(&to)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.came.Add(1)
			go w.join(conn.(*net.TCPConn))
		}
	}()
	return w
}

// join passes on what a client and the holder say to each other.
func (w *wandering) join(client *net.TCPConn) {
	defer client.Close()
	holder := w.holder.Load()
	server, err := net.Dial("tcp", *holder)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		room := make([]byte, 4096)
		for {
			n, err := server.Read(room)
			if w.holder.Load() != holder {
				return // nothing of it gets to the client
			}
			if _, failed := client.Write(room[:n]); err != nil || failed != nil {
				_ = client.SetLinger(0)
				_ = client.Close()
				return
			}
		}
	}()
	room := make([]byte, 4096)
	for {
		n, err := client.Read(room)
		if err != nil {
			return
		}
		if w.holder.Load() != holder {
			_ = client.SetLinger(0)
			return
		}
		if bytes.Contains(room[:n], []byte("seq=")) {
			w.lines.Store(true)
		}
		if _, err := server.Write(room[:n]); err != nil {
			_ = client.SetLinger(0)
			return
		}
	}
}

// TestRsyslogThatComesWhileItsAddressMayGo: Debian's omrelp opens its session in
// the hold window, and its first lines come while it is not known whether the
// address goes. If it goes, they are all at the other node, and none is stored
// here; if it stays, they are all here, by the same session. It fails if the open
// is not answered: librelp then waits for 90 s, and hears of no move. It fails as
// well if what comes behind the open is read at once.
func TestRsyslogThatComesWhileItsAddressMayGo(t *testing.T) {
	for name, goes := range map[string]bool{"goes": true, "stays": false} {
		t.Run(name, func(t *testing.T) {
			first, firstDir, _ := prepare(t)
			second, secondDir, _ := prepare(t)
			here := netip.MustParseAddr("127.0.0.1")
			var away atomic.Bool
			first.interfaces = func() ([]net.Addr, error) {
				if away.Load() {
					return nil, nil
				}
				return []net.Addr{&net.IPNet{IP: here.AsSlice(), Mask: net.CIDRMask(8, 32)}}, nil
			}
			first.tap, second.tap = tapInto(firstDir), tapInto(secondDir)
			stop := run(t, first)
			run(t, second)
			at := newWandering(t, first.Addrs("relp")[0].String())
			before := first.journal.End()
			over := begin(t.Context(), func(ctx context.Context) {
				for ctx.Err() == nil { // it lasts, however slow rsyslogd is, and for long enough that what follows is in time
					mayGo(&first.sessions, here, time.Now().Add(3*holdFor))
					<-time.After(100 * time.Millisecond)
				}
			})
			defer over()
			first.Leave(t.Context(), 0, here)
			r := newRsyslog(t, at.Addr().String())
			const count = 50
			r.log(0, count)
			eventually(t, time.Minute, "its open is answered, and its lines come", func() error {
				if !at.lines.Load() {
					return errors.New("none came")
				}
				return nil
			})
			over()
			if end := first.journal.End(); end != before {
				t.Fatalf("%d lines are stored though the address may go", end-before)
			}
			next, dir := count, firstDir
			if goes {
				away.Store(true)
				to := second.Addrs("relp")[0].String()
				at.holder.Store(&to)
				dir = secondDir
			}
			p := process{t: t, dir: dir}
			eventually(t, time.Minute, "its lines are where its address is", func() error {
				if goes { // it looks at its connection when it has a line to send
					r.log(next, 1)
					next++
				}
				if lost := missing(p.numbers("cn01"), count); len(lost) > 0 {
					return fmt.Errorf("lines %v are missing; %s", lost, r.said())
				}
				return nil
			})
			eventually(t, time.Minute, "and all that it sends", func() error {
				_, err := unsent(came(t, dir), p.numbers("cn01"), next)
				return err
			})
			stop()
			got := p.numbers("cn01")
			seen := map[int]bool{}
			for _, n := range got {
				if seen[n] {
					t.Errorf("line %d is there twice", n)
				}
				seen[n] = true
			}
			switch end := first.journal.End(); {
			case goes && end != before:
				t.Errorf("%d lines are stored at the node that the address left", end-before)
			case !goes && at.came.Load() != 1:
				t.Errorf("it had to connect %d times though its address stayed", at.came.Load())
			}
		})
	}
}

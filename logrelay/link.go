package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/relp"
)

// link is a connection to an address of a target.
type link struct {
	address string
	conn    net.Conn
	raw     *counted // below TLS
	relp    bool

	session relp.Client
	unread  []byte   // received and not taken apart
	sent    []uint64 // numbers of the lines that are not acknowledged

	marks []mark // of TCP, in order
}

// mark says that all lines before a number are in so many bytes.
type mark struct {
	bytes int64
	next  uint64
}

// dialer makes a connection, as net.Dialer's DialContext.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// counted counts what is written.
type counted struct {
	net.Conn
	written atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// dial connects to an address, over TLS if the target is so, and opens the
// session.
func (f *forward) dial(ctx context.Context, address string) (l *link, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	conn, err := f.dialer(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := f.guard(address, func() (err error) {
		l, err = f.open(ctx, conn, address)
		return err
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", address, err), conn.Close())
	}
	return l, nil
}

// open begins TLS and RELP, where the target has them.
func (f *forward) open(ctx context.Context, conn net.Conn, address string) (_ *link, err error) {
	l := &link{address: address, raw: &counted{Conn: conn}, relp: f.target.relp()}
	if l.conn = l.raw; f.target.secure() {
		config := f.tls
		if f.target.trust.ca != "" {
			if config, err = f.target.trust.config(address); err != nil {
				return nil, err
			}
		}
		secure := tls.Client(l.raw, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		l.conn = secure
	}
	if !l.relp {
		return l, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := l.write(l.session.AppendOpen(nil)); err != nil {
		return nil, err
	}
	_, err = l.answers()
	return l, err
}

// watch makes a context that ends with ctx, or when the target is gone, and
// with it what is under way. A target of TCP never speaks: that it ends is all
// that can be read. guard calls what reads.
func (l *link) watch(ctx context.Context, guard func(read func() error) error) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	if l.relp {
		close(ended)
	} else {
		go func() {
			defer close(ended)
			err := guard(func() error {
				_, err := io.Copy(io.Discard, l.conn)
				return err
			})
			if err == nil {
				err = errors.New("the target ended the connection")
			}
			cancel(err)
		}()
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })
	return ctx, func() {
		stop()
		cancel(nil)
		_ = l.conn.SetReadDeadline(time.Unix(1, 0))
		<-ended
	}
}

func (l *link) write(b []byte) error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(answersLimit))
	_, err := l.conn.Write(b)
	return err
}

// mark says that all lines before next are written.
func (l *link) mark(next uint64) {
	l.marks = append(l.marks, mark{l.raw.written.Load(), next})
}

// reached is behind which lines the target's kernel has all: done, or a mark.
func (l *link) reached(done uint64) uint64 {
	tcp, ok := l.raw.Conn.(*net.TCPConn)
	if !ok || len(l.marks) == 0 {
		return done
	}
	waiting, err := sockopt.Unacked(tcp)
	if err != nil {
		return done
	}
	there := l.raw.written.Load() - int64(waiting)
	for len(l.marks) > 0 && l.marks[0].bytes <= there {
		done = l.marks[0].next
		l.marks = l.marks[1:]
	}
	return done
}

// settleWithin is how long a planned end waits for a target's kernel.
const settleWithin = time.Second

// settle waits until the target's kernel has what was written.
func (l *link) settle(done uint64) uint64 {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(settleWithin); ; <-tick.C {
		if done = l.reached(done); len(l.marks) == 0 || time.Now().After(end) {
			return done
		}
	}
}

// answers reads until all frames of RELP are answered; done is behind the last
// line that is.
func (l *link) answers() (done uint64, err error) {
	for l.session.Waiting() > 0 {
		_ = l.conn.SetReadDeadline(time.Now().Add(answersLimit))
		room := make([]byte, 4096)
		n, err := l.conn.Read(room)
		l.unread = append(l.unread, room[:n]...)
		for {
			frame, size, failed := relp.Parse(l.unread)
			if failed != nil {
				return done, failed
			}
			if size == 0 {
				break
			}
			l.unread = l.unread[size:]
			acknowledged, failed := l.session.Step(frame)
			if failed != nil {
				return done, failed
			}
			for range acknowledged {
				if len(l.sent) == 0 {
					return done, errors.New("the target acknowledges more lines than it was sent")
				}
				done = l.sent[0] + 1
				l.sent = l.sent[1:]
			}
		}
		if err != nil && l.session.Waiting() > 0 {
			return done, fmt.Errorf("%d lines are not acknowledged: %w", len(l.sent), err)
		}
	}
	return done, nil
}

// close ends the connection; over TLS with a word of it.
func (l *link) close() error {
	defer l.raw.Close() // also where TLS panics
	_ = l.conn.SetDeadline(time.Now().Add(time.Second))
	return l.conn.Close()
}

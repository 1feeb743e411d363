package logrelay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/relp"
)

// Limits of forwarding.
const (
	dialWithin   = 10 * time.Second
	answersLimit = 90 * time.Second // librelp's
	commitEvery  = time.Second
	sendBytes    = 64 << 10
)

// forward sends every line to another relay, at least once: by RELP the cursor
// moves behind what was acknowledged, by TCP behind what was sent. It belongs
// to one goroutine.
type forward struct {
	target  target
	tls     *tls.Config
	journal *journal.Journal
	cursor  *journal.Cursor
	names   *names
	rules   *rules
	log     *slog.Logger
	metrics *outputMetrics

	conn      net.Conn
	session   relp.Client
	unread    []byte   // received and not taken apart
	sent      []uint64 // numbers of the lines that are not acknowledged
	done      uint64   // all before it are
	committed time.Time
	out       []byte
	line      line
}

// run sends until ctx ends or the target fails.
func (f *forward) run(ctx context.Context, well func()) error {
	if err := f.connect(ctx); err != nil {
		return err
	}
	defer f.conn.Close()
	conn := f.conn // the next run has another
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	well()
	f.log.Info("forwarding", "address", f.target.address)
	reader := f.journal.Reader(f.cursor.Next())
	defer reader.Close()
	err := f.send(ctx, reader)
	if f.done > f.cursor.Next() {
		err = errors.Join(err, f.cursor.Commit(f.done))
	}
	return err
}

func (f *forward) connect(ctx context.Context) error {
	dialer := &net.Dialer{Timeout: dialWithin}
	conn, err := dialer.DialContext(ctx, "tcp", f.target.address)
	if err != nil {
		return err
	}
	if f.target.via == viaTLS {
		secure := tls.Client(conn, f.tls)
		handshake, cancel := context.WithTimeout(ctx, dialWithin)
		defer cancel()
		if err := secure.HandshakeContext(handshake); err != nil {
			return errors.Join(err, conn.Close())
		}
		conn = secure
	}
	f.conn, f.session, f.unread, f.sent, f.out, f.done = conn, relp.Client{}, nil, nil, nil, f.cursor.Next()
	if f.target.via != viaRELP {
		return nil
	}
	if err := f.write(f.session.AppendOpen(nil)); err != nil {
		return errors.Join(err, conn.Close())
	}
	if err := f.answers(0); err != nil {
		return errors.Join(err, conn.Close())
	}
	return nil
}

func (f *forward) write(b []byte) error {
	_ = f.conn.SetWriteDeadline(time.Now().Add(answersLimit))
	_, err := f.conn.Write(b)
	return err
}

func (f *forward) send(ctx context.Context, reader *journal.Reader) error {
	for {
		idle, cancel := context.WithTimeout(ctx, commitEvery)
		block, err := reader.Next(idle)
		cancel()
		if err == nil {
			err = f.sendBlock(ctx, block)
		} else if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = f.flush(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if now := time.Now(); now.Sub(f.committed) >= commitEvery && f.done > f.cursor.Next() {
			f.committed = now
			if err := f.cursor.Commit(f.done); err != nil {
				return err
			}
		}
	}
}

// sendBlock sends a block's lines. RELP lines wait for answers while the
// window is full.
func (f *forward) sendBlock(ctx context.Context, block journal.Block) (err error) {
	from := f.cursor.Next()
	failed := block.Each(func(number uint64, r journal.Record) bool {
		// Other nodes forward what came to them.
		if number < from || ctx.Err() != nil || r.Input == viaMark || r.Input&viaOther != 0 {
			return true
		}
		f.line.read(r, f.names)
		if !f.rules.allow(&f.line, f.target.name) {
			f.metrics.dropped.Inc()
			return true
		}
		before := len(f.out)
		f.frame(number)
		f.metrics.lines.Inc()
		f.metrics.bytes.Add(float64(len(f.out) - before))
		if len(f.out) >= sendBytes || len(f.sent) >= relp.Window {
			err = f.flush(ctx)
		}
		return err == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if err := f.flush(ctx); err != nil {
		return err
	}
	f.done = block.End()
	return nil
}

// frame puts the line behind what is to be sent.
func (f *forward) frame(number uint64) {
	text := f.rules.redact(f.line.appendForward(nil), 0)
	if f.target.via == viaRELP {
		f.out = f.session.AppendLine(f.out, text)
		f.sent = append(f.sent, number)
		return
	}
	f.out = strconv.AppendInt(f.out, int64(len(text)), 10) // RFC 6587 §3.4.1
	f.out = append(append(f.out, ' '), text...)
}

// flush sends, and waits for all answers of RELP.
func (f *forward) flush(ctx context.Context) error {
	if len(f.out) > 0 {
		err := f.write(f.out)
		f.out = f.out[:0]
		if err != nil {
			return err
		}
	}
	if f.target.via == viaRELP {
		return f.answers(0)
	}
	return ctx.Err()
}

// answers reads until at most that many frames are not answered.
func (f *forward) answers(most int) error {
	for f.session.Waiting() > most {
		_ = f.conn.SetReadDeadline(time.Now().Add(answersLimit))
		room := make([]byte, 4096)
		n, err := f.conn.Read(room)
		f.unread = append(f.unread, room[:n]...)
		for {
			frame, size, failed := relp.Parse(f.unread)
			if failed != nil {
				return failed
			}
			if size == 0 {
				break
			}
			f.unread = f.unread[size:]
			acknowledged, failed := f.session.Step(frame)
			if failed != nil {
				return failed
			}
			f.acknowledge(acknowledged)
		}
		if err != nil && f.session.Waiting() > most {
			return fmt.Errorf("%d lines are not acknowledged: %w", len(f.sent), err)
		}
	}
	return nil
}

func (f *forward) acknowledge(n int) {
	for range n {
		f.done = f.sent[0] + 1
		f.sent = f.sent[1:]
	}
}

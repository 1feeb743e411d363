package logrelay

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// maxLine is the greatest syslog message over TCP in bytes; more is cut.
const maxLine = 128 << 10

// serveStream serves a sender of syslog over TCP or TLS until it leaves or ctx
// ends. Nothing is acknowledged: the protocol has no word for it.
func (s *Server) serveStream(ctx context.Context, conn net.Conn, via uint8) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	source := addrOf(conn.RemoteAddr())
	framer := syslog.Framer{Max: maxLine}
	buf := make([]byte, 0, firstBuffer)
	var batch journal.Batch
	keep := s.newKeeper(via)
	defer keep.end()
	for {
		if s.gate.wait(ctx) != nil {
			return nil
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(2*cap(buf), 2*maxLine)), buf...)
		}
		n, failed := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		now, at := time.Now().UnixNano(), 0
		for {
			message, size, err := framer.Next(buf[at:])
			if err != nil {
				failed = errors.Join(failed, err)
				break
			}
			if at += size; size == 0 {
				break
			}
			if len(message) > 0 {
				batch.Add(journal.Record{Time: now, Source: source, Input: via, Data: message})
			}
		}
		if failed != nil && at < len(buf) && errors.Is(failed, io.EOF) {
			batch.Add(journal.Record{Time: now, Source: source, Input: via, Data: buf[at:]}) // the last line lacks its end
		}
		buf = append(buf[:0], buf[at:]...)
		s.metrics.cutLines(via, &framer.Cut)
		keep.put(ctx, &batch)
		switch {
		case failed == nil:
		case errors.Is(failed, io.EOF), ctx.Err() != nil:
			return nil
		default:
			return failed
		}
	}
}

// put appends a batch that nobody waits for, and empties it.
func (s *Server) put(ctx context.Context, batch *journal.Batch, via uint8, p *promises) error {
	if batch.Len() == 0 {
		return nil
	}
	commit, err := s.journal.Append(context.WithoutCancel(ctx), batch)
	if err == nil {
		p.add(commit, batch.Len())
	}
	s.metrics.input(via).took(batch.Len(), batch.Size())
	batch.Reset()
	return err
}

package logrelay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/health"
	"holdfast/internal/kernel/command"
	"holdfast/internal/kernel/sockopt"
	"holdfast/logrelay/journal"
	"holdfast/logrelay/syslog"
)

// This node's own lines: of a socket as /dev/log is one, and of journald. Both
// go into the journal as RFC 5424, with what the kernel, not the sender, says of
// the process. 32473 is the number that RFC 5612 keeps for examples.
const localData = "local@32473"

// appendLocal writes a line of this node.
func appendLocal(dst []byte, priority int, at time.Time, app, pid []byte, data string, text []byte) []byte {
	dst = append(dst, '<')
	dst = append(strconv.AppendInt(dst, int64(priority), 10), ">1 "...)
	dst = append(at.AppendFormat(dst, "2006-01-02T15:04:05.000000Z07:00"), " - "...)
	dst = append(appendWord(dst, app, 48), ' ')
	dst = append(appendWord(dst, pid, 128), " - ["+localData...)
	dst = append(dst, data...)
	return append(append(dst, "] "...), text...)
}

// listenUnix opens a socket that every process may write to. One that a dead
// process left is replaced.
func listenUnix(ctx context.Context, path string) (*net.UnixConn, error) {
	if conn, err := net.Dial("unixgram", path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("logrelay: %s: another process reads it; leave it out of logs.unix, or end that", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("logrelay: %w", err)
		}
	}
	config := net.ListenConfig{Control: sockopt.PassCredentials}
	conn, err := config.ListenPacket(ctx, "unixgram", path)
	if err != nil {
		return nil, fmt.Errorf("logrelay: listen: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil { //nolint:gosec // as /dev/log is
		return nil, errors.Join(fmt.Errorf("logrelay: %w", err), conn.Close(), os.Remove(path))
	}
	return conn.(*net.UnixConn), nil
}

// serveUnix takes datagrams until ctx ends, and then what has come by then. A full disk
// holds no program of this node up: as with UDP, debug lines are dropped in the end.
func (s *Server) serveUnix(ctx context.Context, conn *net.UnixConn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	room, oob := make([]byte, maxLine), make([]byte, sockopt.CredentialsRoom())
	// Others, who can be held back, may fill the journal's room with each write.
	batch := journal.Batch{Urgent: true}
	promised := s.newPromises(viaUnix, unixPatience)
	defer promised.end()
	var line []byte
	take := func(n, control int) {
		now, wanted := time.Now(), false
		if line, wanted = s.takeLocal(line[:0], room[:n], oob[:control], now); wanted {
			batch.Add(journal.Record{Time: now.UnixNano(), Source: s.ownAddress(), Input: viaUnix, Data: line})
			promised.put(&batch)
		}
	}
	for {
		n, control, _, _, err := conn.ReadMsgUnix(room, oob)
		if err == nil {
			take(n, control)
			continue
		}
		if ctx.Err() == nil {
			return fmt.Errorf("logrelay: %v: %w", conn.LocalAddr(), err)
		}
		break
	}
	// Who writes on hears from now on that nobody reads it, so what is there has an end
	// (unix_dgram_sendmsg of Linux).
	err := conn.CloseRead()
	for more := err == nil; more; {
		var n, control int
		if n, control, more, err = sockopt.ReceiveThere(conn, room, oob); more {
			take(n, control)
		}
	}
	if err != nil {
		return fmt.Errorf("logrelay: %v, what was written last: %w", conn.LocalAddr(), err)
	}
	return nil
}

// takeLocal writes the line of a datagram and of what the kernel says of its
// sender, unless the disk has no room for it. One that something panics over is
// text.
func (s *Server) takeLocal(dst, datagram, control []byte, now time.Time) (line []byte, wanted bool) {
	var sender sockopt.Credentials
	defer func() {
		if p := recover(); p != nil {
			_ = s.bugs.input(viaUnix, p, "bytes", len(datagram)) // there is no connection to end
			line, wanted = s.takeText(dst, datagram, sender, now)
		}
	}()
	sender, _ = sockopt.SenderCredentials(control)
	if s.gate.shed() && syslog.Severity(datagram) >= debugSeverity {
		s.metrics.shed.Inc()
		return dst, false
	}
	return appendSocket(dst, datagram, sender, now), true
}

// takeText writes the line of a datagram that is not taken apart. One that something
// panics over here as well is lost, and counted.
func (s *Server) takeText(dst, datagram []byte, sender sockopt.Credentials, now time.Time) (line []byte, wanted bool) {
	defer func() {
		if p := recover(); p != nil {
			_ = s.bugs.input(viaUnix, p, "bytes", len(datagram))
			s.metrics.lost[viaUnix].Inc()
			line, wanted = dst, false
		}
	}()
	return appendSent(dst, &syslog.Message{Priority: syslog.DefaultPriority, Time: now, Text: datagram}, sender), true
}

// appendSocket writes a datagram with who sent it.
func appendSocket(dst, datagram []byte, sender sockopt.Credentials, now time.Time) []byte {
	var m syslog.Message
	syslog.ParseLocal(&m, datagram, now)
	if m.Time.IsZero() {
		m.Time = now
	}
	return appendSent(dst, &m, sender)
}

// appendSent writes a message with who sent it.
func appendSent(dst []byte, m *syslog.Message, sender sockopt.Credentials) []byte {
	pid := m.Proc
	data := ""
	if sender.PID > 0 {
		pid = strconv.AppendInt(nil, int64(sender.PID), 10)
		data = fmt.Sprintf(` uid="%d" gid="%d"`, sender.UID, sender.GID)
	}
	return appendLocal(dst, int(m.Priority), m.Time, m.App, pid, data, bytes.TrimPrefix(m.Text, []byte{' '}))
}

const (
	conditionJournald = "logs.journald"
	journaldCursor    = "journald-cursor"
	journalctl        = "/usr/bin/journalctl"
)

// followJournald takes journald's entries until ctx ends.
func (s *Server) followJournald(ctx context.Context) {
	runner, err := command.New(journalctl)
	if err != nil {
		s.log.Error("journald can't be read", "error", err)
		return
	}
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		began := time.Now()
		err := s.readJournald(ctx, runner)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("journalctl ended")
		}
		if time.Since(began) > lastRetry {
			pause = firstRetry
		}
		s.board.Raise(conditionJournald, health.Warning, fmt.Sprintf(
			"lines of this node's journald don't come: %v; it keeps them, and they are asked for again", err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// readJournald takes what is behind the cursor, and what follows. The first
// time that is what there is since the machine was started.
func (s *Server) readJournald(ctx context.Context, runner *command.Runner) error {
	path := filepath.Join(s.dir(), journaldCursor)
	argv := append([]string{journalctl, "--follow", "--no-tail", "--no-pager", "--quiet", "--output=export"}, s.journalArgs...)
	cursor, err := os.ReadFile(path)
	switch {
	case err == nil:
		argv = append(argv, "--after-cursor="+strings.TrimSpace(string(cursor)))
	case errors.Is(err, fs.ErrNotExist):
		argv = append(argv, "--boot")
	default:
		return err
	}
	return runner.Stream(ctx, command.Command{Argv: argv}, func(out io.Reader) error {
		return s.takeEntries(ctx, bufio.NewReaderSize(out, 64<<10), path)
	})
}

// takeEntries stores entries, and then how far it has come: after a crash
// between the two, the lines of one write come twice. An entry that something panics
// over would come again at each start of journalctl, and none behind it: a line that
// says so stands in its place, and journalctl goes on behind it.
func (s *Server) takeEntries(ctx context.Context, from *bufio.Reader, path string) error {
	var batch journal.Batch
	var line []byte
	cursor := "" // of the last entry in the batch
	for {
		var e entry
		bug := s.guard(viaJournald, func() error {
			err := e.read(from)
			if err == nil {
				line = e.append(line[:0])
			}
			return err
		})
		switch {
		case errors.Is(bug, io.EOF) || ctx.Err() != nil:
			return nil // what is in the batch was not stored, and comes again
		case bug == nil:
		case !errors.Is(bug, errBug), e.cursor == "" && batch.Len() == 0:
			return bug
		case e.cursor != "":
			line = appendLocal(line[:0], standInPriority, time.Now(), []byte(announceApp), nil, "",
				fmt.Appendf(nil, "an entry of journald could not be read and is left out here: journalctl --cursor='%s' shows it (condition %s)", e.cursor, conditionFailed))
		}
		if e.cursor != "" {
			cursor = e.cursor
			batch.Add(journal.Record{Time: time.Now().UnixNano(), Source: s.ownAddress(), Input: viaJournald, Data: line})
		}
		if bug == nil && from.Buffered() > 0 && batch.Size() < batchBytes {
			continue
		}
		if s.gate.wait(ctx) != nil {
			return nil
		}
		commit, err := s.journal.Append(ctx, &batch)
		if err == nil {
			err = commit.Wait(ctx)
		}
		if err == nil {
			err = durable.Replace(path, []byte(cursor+"\n"), 0o600)
		}
		if err != nil {
			return errors.Join(err, bug)
		}
		s.metrics.input(viaJournald).took(batch.Len(), batch.Size())
		if bug != nil {
			return bug // nobody knows where the next entry begins
		}
		batch.Reset()
		s.board.Clear(conditionJournald)
	}
}

// append writes the entry as a line.
func (e *entry) append(dst []byte) []byte {
	data := ""
	if len(e.uid) > 0 {
		data = fmt.Sprintf(` uid="%s"`, appendWord(nil, bytes.Map(plain, e.uid), 20))
	}
	if len(e.unit) > 0 {
		data += fmt.Sprintf(` unit="%s"`, appendWord(nil, bytes.Map(plain, e.unit), 256))
	}
	at := e.time
	if at.IsZero() {
		at = time.Now()
	}
	return appendLocal(dst, e.facility<<3|e.priority, at, e.app, e.pid, data, e.message)
}

// plain is what may stand in a value of structured data as it is (RFC 5424
// §6.3.3).
func plain(r rune) rune {
	if r == '"' || r == ']' || r == '\\' {
		return '?'
	}
	return r
}

package lb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/state"
)

const (
	utmpFile   = "/run/utmp"
	lookEvery  = 10 * time.Second
	maxUtmp    = 4 << 20
	idleLongly = time.Hour
)

// People are those who are logged in on a node that is drained.
type People struct {
	At     time.Time `json:"at"`
	First  int       `json:"first"` // how many there were when the drain began
	Logins []Login   `json:"logins"`
}

// Login is one of them.
type Login struct {
	User string    `json:"user"`
	TTY  string    `json:"tty"` // below /dev; "": none, as when somebody copies files
	From string    `json:"from,omitempty"`
	At   time.Time `json:"at"`
	Last time.Time `json:"last,omitzero"` // when something was typed
	pid  int
}

// A utmp entry as Linux has it on 64-bit machines (utmp(5)).
const (
	utmpSize    = 384
	userProcess = 7
)

// parseUtmp reads who is logged in. What is cut short, or is no login on a
// terminal below /dev, is left out.
func parseUtmp(b []byte) (all []Login) {
	text := func(e []byte) string {
		e, _, _ = bytes.Cut(e, []byte{0})
		return strings.ToValidUTF8(string(e), "?")
	}
	for ; len(b) >= utmpSize; b = b[utmpSize:] {
		if int16(binary.LittleEndian.Uint16(b)) != userProcess {
			continue
		}
		l := Login{
			pid: int(int32(binary.LittleEndian.Uint32(b[4:]))), TTY: text(b[8:40]), User: text(b[44:76]), From: text(b[76:332]),
			At: time.Unix(int64(binary.LittleEndian.Uint32(b[340:])), 0),
		}
		if l.pid > 0 && l.User != "" && terminal(l.TTY) {
			all = append(all, l)
		}
	}
	return all
}

// terminal tells whether a line of utmp names one below /dev.
func terminal(line string) bool {
	return filepath.IsLocal(line) && filepath.Clean(line) == line && (strings.HasPrefix(line, "pts/") || strings.HasPrefix(line, "tty"))
}

// loggedIn tells who is logged in here now, by utmp and by logind: what has no
// utmp any more has logind, and who needs no terminal stands only there.
func loggedIn() ([]Login, error) { return loggedInBelow("/") }

func loggedInBelow(root string) ([]Login, error) {
	text, err := readSome(filepath.Join(root, utmpFile), maxUtmp)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lb: who is logged in: %w", err)
	}
	more, err := sessions(root)
	if err != nil {
		return nil, err
	}
	var all []Login
	for _, l := range append(parseUtmp(text), more...) {
		if _, err := os.Stat(filepath.Join(root, "proc", strconv.Itoa(l.pid))); err != nil {
			continue // it died without a word
		}
		if slices.ContainsFunc(all, l.same) {
			continue
		}
		if info, err := os.Stat(filepath.Join(root, "dev", l.TTY)); err == nil && l.TTY != "" {
			stat := info.Sys().(*syscall.Stat_t)
			l.Last = time.Unix(stat.Atim.Unix())
		}
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Login) int {
		return cmp.Or(strings.Compare(a.User, b.User), strings.Compare(a.TTY, b.TTY), a.pid-b.pid)
	})
	return all, nil
}

// same tells whether two entries are one log-in: a terminal has one, and so has
// the process that leads it.
func (l Login) same(o Login) bool { return l.pid == o.pid || l.TTY != "" && l.TTY == o.TTY }

// readSome reads a file, or as much of it as is of use.
func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// wall writes a message to all terminals, as wall(1) does. A terminal that
// does not take it at once is left out.
func wall(logins []Login, message string) (told int) {
	for _, l := range logins {
		if l.TTY == "" {
			continue
		}
		f, err := os.OpenFile(filepath.Join("/dev", l.TTY), os.O_WRONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
		if err != nil {
			continue
		}
		info, err := f.Stat()
		if err == nil && info.Mode()&os.ModeCharDevice != 0 {
			if _, err = fmt.Fprintf(f, "\r\n%s\r\n", message); err == nil {
				told++
			}
		}
		_ = f.Close() // it was told, or not
	}
	return told
}

// warnings are how long before the deadline people are told again.
func warnings() []time.Duration {
	return []time.Duration{time.Hour, 15 * time.Minute, 5 * time.Minute, time.Minute}
}

// due tells whether people are to be told between two moments: at the start,
// and at each warning before the deadline.
func (d Drain) due(last, now time.Time) bool {
	if last.Before(d.Since) {
		return true
	}
	return !d.Deadline.IsZero() && slices.ContainsFunc(warnings(), func(before time.Duration) bool {
		at := d.Deadline.Add(-before)
		return at.After(last) && !at.After(now)
	})
}

// words are what people read.
func (d Drain) words(node string, now time.Time) string {
	text := node + " is being taken out of service: please log out; a new login goes to another node."
	if left := d.Deadline.Sub(now).Round(time.Minute); !d.Deadline.IsZero() && left > 0 {
		text += fmt.Sprintf(" It ends in %v, at %s.", left, d.Deadline.Local().Format("15:04"))
	}
	if d.Message != "" {
		text += " " + d.Message
	}
	return text
}

// Left estimates how long it takes until all have gone, at the rate of those
// who went since the drain began; ok: somebody did go.
func (p People) Left(since time.Time) (left time.Duration, ok bool) {
	gone := p.First - len(p.Logins)
	if gone <= 0 || len(p.Logins) == 0 {
		return 0, len(p.Logins) == 0
	}
	return (p.At.Sub(since) * time.Duration(len(p.Logins)) / time.Duration(gone)).Round(time.Minute), true
}

// attend looks after the people on this node while it is drained: it tells
// them, and the store who they are.
func (s *Service) attend(ctx context.Context) {
	if s.deps.Store == nil {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var told time.Time
	for {
		node := s.current().Node
		order, drained := drains(s.deps.Store.Snapshot())[node]
		old, _ := s.deps.Store.Snapshot().Document(nil, kindPeople, node)
		switch {
		case drained:
			if err := s.look(ctx, node, order, old, &told); err != nil && ctx.Err() == nil {
				s.log.Warn("look after the people of a drained node", "error", err)
			}
		case old != nil:
			told = time.Time{}
			_ = s.propose(ctx, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: kindPeople, Key: node}}) // again at the next tick
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look writes down who is there, when that has changed, and tells them.
func (s *Service) look(ctx context.Context, node string, order Drain, old *state.Document, told *time.Time) error {
	logins, err := loggedIn()
	if err != nil {
		return err
	}
	now := time.Now()
	if order.due(*told, now) {
		*told = now
		s.log.Info("told people that the node is drained", "logins", len(logins), "told", wall(logins, order.words(node, now)))
	}
	var before People
	if old == nil || json.Unmarshal(old.Value, &before) != nil || before.At.Before(order.Since) {
		before = People{First: len(logins)}
	}
	if before.At.After(order.Since) && slices.EqualFunc(before.Logins, logins, func(a, b Login) bool {
		return a.User == b.User && a.TTY == b.TTY && a.At.Equal(b.At) && b.Last.Sub(a.Last) < 5*time.Minute
	}) {
		return nil
	}
	value, err := json.Marshal(People{At: now, First: max(before.First, len(logins)), Logins: logins})
	if err != nil {
		return err
	}
	return s.propose(ctx, state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindPeople, Key: node, Value: value}})
}

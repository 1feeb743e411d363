package telemetry

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
)

// tailLines is how many lines wait for a reader of a tail.
const tailLines = 512

// Tail is a slog.Handler that hands records on to another and, while somebody
// follows, to him, too: also those that are below the other's level.
type Tail struct {
	next      slog.Handler
	followers *followers
	recent    *recent
	with      []func(slog.Handler) slog.Handler // attributes and groups, in their order
}

// followers are shared by all handlers that came of one Tail.
type followers struct {
	mu   sync.RWMutex
	list map[*follower]struct{}
}

// A tail keeps the last lines for who comes when it is too late to follow:
// at most 4 MiB.
const (
	recentLines = 1024
	recentBytes = 4 << 10 // of a line
)

// recent is a ring of lines.
type recent struct {
	mu    sync.Mutex
	lines [recentLines][]byte
	next  int
}

func (r *recent) add(line []byte) {
	if len(line) > recentBytes {
		line = append(bytes.Clone(line[:recentBytes]), "...\n"...)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines[r.next] = line
	r.next = (r.next + 1) % recentLines
}

// Recent are the last lines that the next handler was given, at most 1024, the
// oldest first, as text.
func (t *Tail) Recent() [][]byte {
	r := t.recent
	r.mu.Lock()
	defer r.mu.Unlock()
	found := make([][]byte, 0, recentLines)
	for i := range recentLines {
		if line := r.lines[(r.next+i)%recentLines]; line != nil {
			found = append(found, line)
		}
	}
	return found
}

type follower struct {
	level slog.Level
	json  bool
	lines chan []byte
}

// NewTail stands before another handler.
func NewTail(next slog.Handler) *Tail {
	return &Tail{next: next, followers: &followers{list: map[*follower]struct{}{}}, recent: &recent{}}
}

// Follow returns the lines of records from now on, of at least a level, until
// stop is called. Lines are lost rather than waited for when the reader is
// slow.
func (t *Tail) Follow(level slog.Level, json bool) (lines <-chan []byte, stop func()) {
	f := &follower{level: level, json: json, lines: make(chan []byte, tailLines)}
	t.followers.mu.Lock()
	defer t.followers.mu.Unlock()
	t.followers.list[f] = struct{}{}
	return f.lines, func() {
		t.followers.mu.Lock()
		defer t.followers.mu.Unlock()
		delete(t.followers.list, f)
	}
}

// Enabled is part of slog.Handler.
func (t *Tail) Enabled(ctx context.Context, level slog.Level) bool {
	if t.next.Enabled(ctx, level) {
		return true
	}
	t.followers.mu.RLock()
	defer t.followers.mu.RUnlock()
	for f := range t.followers.list {
		if level >= f.level {
			return true
		}
	}
	return false
}

// Handle is part of slog.Handler.
func (t *Tail) Handle(ctx context.Context, r slog.Record) error {
	t.followers.mu.RLock()
	for f := range t.followers.list {
		if r.Level >= f.level {
			f.tell(ctx, r, t.with)
		}
	}
	t.followers.mu.RUnlock()
	if !t.next.Enabled(ctx, r.Level) {
		return nil
	}
	if line := format(ctx, r, t.with, r.Level, false); line != nil {
		t.recent.add(line)
	}
	return t.next.Handle(ctx, r)
}

func (f *follower) tell(ctx context.Context, r slog.Record, with []func(slog.Handler) slog.Handler) {
	line := format(ctx, r, with, f.level, f.json)
	if line == nil {
		return
	}
	select {
	case f.lines <- line:
	default:
	}
}

// format makes a record's line; nil when that fails.
func format(ctx context.Context, r slog.Record, with []func(slog.Handler) slog.Handler, level slog.Level, json bool) []byte {
	var line bytes.Buffer
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(&line, options)
	if json {
		h = slog.NewJSONHandler(&line, options)
	}
	for _, apply := range with {
		h = apply(h)
	}
	if h.Handle(ctx, r) != nil {
		return nil
	}
	return line.Bytes()
}

// WithAttrs is part of slog.Handler.
func (t *Tail) WithAttrs(attrs []slog.Attr) slog.Handler {
	return t.derived(t.next.WithAttrs(attrs), func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

// WithGroup is part of slog.Handler.
func (t *Tail) WithGroup(name string) slog.Handler {
	return t.derived(t.next.WithGroup(name), func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (t *Tail) derived(next slog.Handler, apply func(slog.Handler) slog.Handler) *Tail {
	with := append(t.with[:len(t.with):len(t.with)], apply)
	return &Tail{next: next, followers: t.followers, recent: t.recent, with: with}
}

package discovery

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// What a line of Serf's or memberlist's log means to us.
type lineClass struct {
	level slog.Level
	// refused is the reason when the line says that a peer was turned away.
	refused refusal
}

// refusal is why something that arrived was not taken.
type refusal string

// The reasons, as the metric has them.
const (
	refusedCluster   refusal = "cluster"   // a member of another cluster
	refusedKey       refusal = "key"       // encrypted with another key, or not at all
	refusedConflict  refusal = "conflict"  // another node under a name that is taken
	refusedMalformed refusal = "malformed" // not gossip
)

// phrases classify lines by what they contain; the first that matches counts.
// Serf's story of joins and failures is told by us, so its Info is Debug here.
var phrases = []struct {
	contains string
	class    lineClass
}{
	{"o installed keys could decrypt", lineClass{slog.LevelWarn, refusedKey}},
	{"is not encrypted", lineClass{slog.LevelWarn, refusedKey}},
	{"is encrypted and encryption is not configured", lineClass{slog.LevelWarn, refusedKey}},
	{"Decrypt packet failed", lineClass{slog.LevelWarn, refusedKey}},
	{"is of cluster", lineClass{slog.LevelDebug, ""}}, // the merge delegate has said it
	{"ame conflict", lineClass{slog.LevelWarn, ""}},
	{"name conflicts", lineClass{slog.LevelWarn, ""}},
	{"Conflicting address", lineClass{slog.LevelDebug, ""}}, // followed by "Name conflict"
	{"not supported", lineClass{slog.LevelWarn, refusedMalformed}},
	{"invalid msgType", lineClass{slog.LevelWarn, refusedMalformed}},
	{"invalid checksum", lineClass{slog.LevelWarn, refusedMalformed}},
	{"Failed to decode", lineClass{slog.LevelWarn, refusedMalformed}},
	{"missing message type", lineClass{slog.LevelWarn, refusedMalformed}},
	{"unacceptable label", lineClass{slog.LevelWarn, refusedMalformed}},
	{"Refuting", lineClass{slog.LevelDebug, ""}},
	{"Shutdown without a Leave", lineClass{slog.LevelDebug, ""}},
	{"failed to receive", lineClass{slog.LevelDebug, ""}},
	{"Failed push/pull merge", lineClass{slog.LevelDebug, ""}},
	{"Failed to re-join any", lineClass{slog.LevelDebug, ""}}, // our own search goes on
}

// classify splits a line such as "[WARN] memberlist: message" and says what it
// means.
func classify(line string) (class lineClass, message string) {
	message = line
	if strings.HasPrefix(line, "[") {
		if tag, rest, ok := strings.Cut(line[1:], "] "); ok {
			class.level, message = levelOf(tag), rest
		}
	}
	for _, p := range phrases {
		if strings.Contains(message, p.contains) {
			return p.class, message
		}
	}
	return class, message
}

func levelOf(tag string) slog.Level {
	switch tag {
	case "ERR", "ERROR", "WARN":
		return slog.LevelWarn // trouble of a peer or the network, not of this node
	}
	return slog.LevelDebug
}

// logWriter takes the standard log of Serf and memberlist, line by line.
type logWriter struct {
	log     *slog.Logger
	refused func(refusal)

	mu   sync.Mutex
	last map[string]time.Time // by message, for what repeats
}

// repeatInterval is how often the same warning is logged.
const repeatInterval = time.Minute

// newStdLogger returns the logger that Serf and memberlist are given.
func newStdLogger(l *slog.Logger, refused func(refusal)) *log.Logger {
	return log.New(&logWriter{log: l, refused: refused, last: map[string]time.Time{}}, "", 0)
}

// Write handles one line; the log package makes one call a line.
func (w *logWriter) Write(p []byte) (int, error) {
	class, message := classify(string(bytes.TrimSpace(p)))
	if class.refused != "" {
		w.refused(class.refused)
	}
	if class.level >= slog.LevelWarn && w.repeated(message) {
		class.level = slog.LevelDebug
	}
	w.log.Log(context.Background(), class.level, message)
	return len(p), nil
}

// repeated tells whether the message, but for the port it came from, was there
// a moment ago.
func (w *logWriter) repeated(message string) bool {
	key := message
	if at := strings.LastIndex(message, "from="); at >= 0 {
		if colon := strings.LastIndex(message, ":"); colon > at {
			key = message[:colon]
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for old, at := range w.last {
		if now.Sub(at) >= repeatInterval {
			delete(w.last, old)
		}
	}
	if _, ok := w.last[key]; ok {
		return true
	}
	if len(w.last) < 1000 { // a flood of different lines must not grow us
		w.last[key] = now
	}
	return false
}

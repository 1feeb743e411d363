package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLog hands hashicorp/raft's log to slog, one level lower than the library
// means it: what is news to Raft is detail to an admin. Warnings and errors
// that repeat are thinned out.
type raftLog struct {
	log     *slog.Logger
	name    string
	implied []any
	thin    *limiter
	quiet   *atomic.Bool // while Raft stops, its complaints are none
}

var _ hclog.Logger = (*raftLog)(nil)

func newRaftLog(log *slog.Logger, quiet *atomic.Bool) hclog.Logger {
	return &raftLog{log: log, name: "raft", thin: newLimiter(time.Minute), quiet: quiet}
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (l *raftLog) Log(level hclog.Level, msg string, args ...any) {
	to := slogLevel(level)
	if ofDeposed(args) {
		to = slog.LevelDebug
	}
	if !l.log.Enabled(context.Background(), to) {
		return
	}
	if to > slog.LevelDebug && (l.quiet.Load() || !l.thin.allow(thinKey(msg, args))) {
		to = slog.LevelDebug
	}
	l.log.Log(context.Background(), to, "raft: "+msg, clean(args)...)
}

// ofDeposed tells whether a line is about a message that this server did not send,
// since it no longer leads: each change of leader has some.
func ofDeposed(args []any) bool {
	return slices.ContainsFunc(args, func(arg any) bool {
		err, ok := arg.(error)
		return ok && errors.Is(err, errDeposed)
	})
}

// thinKey keeps faults of different peers apart.
func thinKey(msg string, args []any) string {
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "peer", "target", "server-id", "id", "candidate", "from":
			return msg + "|" + stringOf(args[i+1])
		}
	}
	return msg
}

// clean turns hclog's lazy formats into strings and keeps pairs paired.
func clean(args []any) []any {
	out := make([]any, 0, len(args))
	for i := 0; i+1 < len(args); i += 2 {
		out = append(out, stringOf(args[i]), plain(args[i+1]))
	}
	return out
}

func plain(v any) any {
	if f, ok := v.(hclog.Format); ok {
		return stringOf(f)
	}
	return v
}

func stringOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case hclog.Format:
		if format, ok := v[0].(string); ok && len(v) > 1 {
			return fmt.Sprintf(format, v[1:]...)
		}
	}
	return fmt.Sprintf("%v", v)
}

func (l *raftLog) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLog) enabled(level hclog.Level) bool {
	return l.log.Enabled(context.Background(), slogLevel(level))
}

func (l *raftLog) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *raftLog) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *raftLog) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *raftLog) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *raftLog) IsError() bool { return l.enabled(hclog.Error) }

func (l *raftLog) ImpliedArgs() []any { return l.implied }
func (l *raftLog) Name() string       { return l.name }

func (l *raftLog) With(args ...any) hclog.Logger {
	next := *l
	next.log = l.log.With(clean(args)...)
	next.implied = append(append([]any(nil), l.implied...), args...)
	return &next
}

func (l *raftLog) Named(name string) hclog.Logger { return l.ResetNamed(l.name + "." + name) }

func (l *raftLog) ResetNamed(name string) hclog.Logger {
	next := *l
	next.name = name
	return &next
}

// SetLevel does nothing: the process's log level is slog's.
func (l *raftLog) SetLevel(hclog.Level) {}

func (l *raftLog) GetLevel() hclog.Level {
	for _, level := range []hclog.Level{hclog.Debug, hclog.Warn, hclog.Error} {
		if l.enabled(level) {
			return level
		}
	}
	return hclog.Off
}

func (l *raftLog) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}

func (l *raftLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return logWriter{l} }

// logWriter takes lines of a standard logger.
type logWriter struct{ to *raftLog }

func (w logWriter) Write(p []byte) (int, error) {
	w.to.Warn(strings.TrimSpace(string(p)))
	return len(p), nil
}

package raftstore

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/state"
)

// soon bounds what comes, or never: a machine that is slow, or stands still for
// seconds now and then, must not end a wait.
const soon = time.Minute

// calm is the timing of tests in which no election may come between: it takes a
// machine that stands still for two seconds, the leader's lease.
const calm = 10

// asked asks for what is harmless to repeat, again while the leader is lost: when
// the disks of all stand still there is none for many times what is held.
func asked(ask func() error) error {
	deadline := time.Now().Add(soon)
	tick := time.NewTicker(5 * time.Millisecond) // "no leader" may come at once: who asks without a pause keeps the election from a processor
	defer tick.Stop()
	for ; ; <-tick.C {
		err := ask()
		if !errors.Is(err, state.ErrUnknownOutcome) && !errors.Is(err, state.ErrNoLeader) || time.Now().After(deadline) {
			return err
		}
	}
}

// eventually polls until check is satisfied.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(soon)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v: %v", what, soon, err)
		}
		<-tick.C
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// logBuffer keeps a log for the case that the test fails.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

var _ io.Writer = (*logBuffer)(nil)

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) tail(lines int) string {
	all := strings.Split(l.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

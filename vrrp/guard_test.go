package vrrp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/runfile"
)

// onDuty is a guard in a run directory of its own.
func onDuty(t *testing.T) *guard {
	t.Helper()
	at, err := runfile.Here()
	if err != nil {
		t.Fatal(err)
	}
	g := &guard{log: slog.New(slog.DiscardHandler), dir: t.TempDir(), at: at, held: map[string]guardWord{}, tenancies: map[string]*tenancy{}}
	g.signedBy(t, os.Getpid())
	return g
}

func (g *guard) signedBy(t *testing.T, pid int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, guardFile), fmt.Appendf(nil, "%d\n", pid), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestWhoOnlyLooksWhoRunsIsNoSuccessor: `holdfast restart` and a second agent
// take the lock for a moment. A guard that gave up for it would leave the
// addresses for ever.
func TestWhoOnlyLooksWhoRunsIsNoSuccessor(t *testing.T) {
	g := onDuty(t)
	looking, err := lockExclusive(filepath.Join(g.dir, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(30*time.Millisecond, func() { looking.Close() })
	lock, err := g.takeLock()
	if err != nil || lock == nil {
		t.Fatalf("the guard gave up: %v", err)
	}
	lock.Close()
}

func TestGuardOfASuccessorRelievesTheOlderOne(t *testing.T) {
	g := onDuty(t)
	g.signedBy(t, os.Getpid()+1)
	lock, err := g.takeLock()
	if err != nil || lock != nil {
		t.Fatalf("it took the lock: %v", err)
	}
}

// TestGuardWithdrawsWhatWasBeingRemoved: the agent told that nothing is held
// any more, and died before the address was gone.
func TestGuardWithdrawsWhatWasBeingRemoved(t *testing.T) {
	g := onDuty(t)
	j, _, err := openJournal(g.dir, g.at)
	if err != nil {
		t.Fatal(err)
	}
	// On an interface that is gone, so that nothing is to be removed really.
	if err := j.add([]entry{{Index: 1 << 20, Name: "gone0", Prefix: netip.MustParsePrefix("10.9.0.100/32"), Router: "web"}}); err != nil {
		t.Fatal(err)
	}
	if err := g.withdraw(context.Background()); err != nil {
		t.Fatal(err)
	}
	if j, _, err = openJournal(g.dir, g.at); err != nil || len(j.list()) > 0 {
		t.Errorf("the journal still has %v, %v", j.list(), err)
	}
}

func TestRestartIsBelievedOnceAndNotForEver(t *testing.T) {
	dir := t.TempDir()
	if leftJustNow(dir) {
		t.Error("nothing was left")
	}
	if err := leaveFor(dir, time.Minute); err != nil {
		t.Fatal(err)
	}
	if !leftJustNow(dir) || leftJustNow(dir) {
		t.Error("the word holds once")
	}
	if err := leaveFor(dir, -time.Second); err != nil {
		t.Fatal(err)
	}
	if leftJustNow(dir) {
		t.Error("the grace was over")
	}
}

func FuzzGuardLines(f *testing.F) {
	f.Add([]byte(`{"op":"lease","router":"web","fenced":[{"index":2,"interface":"eth0","prefix":"10.9.0.100/32"}],"until":1}` + "\n" + `{"op":"unlease","router":"web"}` + "\n"))
	f.Add([]byte(`{"op":"hold","router":"web","index":2,"patience":200000000}` + "\n" + `{"op":"bye"}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		g := &guard{log: slog.New(slog.DiscardHandler), held: map[string]guardWord{}, tenancies: map[string]*tenancy{}, kernel: &fakeAddresses{}}
		bye := g.listen(bytes.NewReader(text))
		if bye && !strings.Contains(string(text), "bye") {
			t.Errorf("%q said goodbye", text)
		}
	})
}

// quietLoop is a loop whose mailbox works and that does nothing else.
func quietLoop() *loop { return &loop{mail: newMailbox(func() {})} }

func TestWhoWaitsForTheLoopIsToldThatItEnded(t *testing.T) {
	l := quietLoop()
	waited := make(chan error, 1)
	go func() { waited <- l.do(context.Background(), func() { t.Error("it ran") }) }()
	for {
		l.mail.mu.Lock()
		queued := len(l.mail.queue)
		l.mail.mu.Unlock()
		if queued > 0 {
			break
		}
	}
	l.mail.close()
	select {
	case err := <-waited:
		if !errors.Is(err, ErrStopped) {
			t.Errorf("it says %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for ever")
	}
	if err := l.do(context.Background(), func() {}); !errors.Is(err, ErrStopped) {
		t.Errorf("after the end: %v", err)
	}
}

package vrrp

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/kernel/command"
)

const (
	guardTellLimit  = 5 * time.Second // for a guard that does not read; one that starts on a busy machine does so late
	guardByeLimit   = time.Second
	guardMinBackoff = 50 * time.Millisecond
	guardMaxBackoff = 10 * time.Second
	guardSteady     = 10 * time.Second // a guard that lived so long is sound
)

// guardian keeps a guard running and tells it what is held.
type guardian struct {
	argv    []string // after the program's name; empty: there is no guard
	log     *slog.Logger
	told    *conditions
	metrics *metrics
	report  *atomic.Pointer[GuardReport]

	mu      sync.Mutex
	held    map[string]guardWord
	leases  map[string]guardWord
	pending []guardWord
	wake    chan struct{}
	done    chan struct{}
	ending  chan ending
}

// ending is how the guard is to be left.
type ending struct {
	goodbye bool // everything was withdrawn
}

func (g *guardian) enabled() bool { return len(g.argv) > 0 }

// hold says that a router holds its addresses from now on.
func (g *guardian) hold(word guardWord) {
	word.Op = guardHold
	g.post(word, func() { g.held[word.Router] = word })
}

// release says that it does not.
func (g *guardian) release(router string) {
	g.post(guardWord{Op: guardRelease, Router: router}, func() { delete(g.held, router) })
}

// lease says until when a fenced router's addresses may be there.
func (g *guardian) lease(word guardWord) {
	word.Op = guardLease
	g.post(word, func() { g.leases[word.Router] = word })
}

// unlease says that they are gone.
func (g *guardian) unlease(router string) {
	g.post(guardWord{Op: guardUnlease, Router: router}, func() { delete(g.leases, router) })
}

// restart says that a successor comes within the time given for each router.
func (g *guardian) restart(patience map[string]time.Duration) {
	for router, d := range patience {
		g.post(guardWord{Op: guardRestart, Router: router, Patience: d}, func() {})
	}
}

func (g *guardian) post(word guardWord, remember func()) {
	if !g.enabled() {
		return
	}
	g.mu.Lock()
	remember()
	g.pending = append(g.pending, word)
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// take gives the lines that are to be written: all that is held to a new
// guard, or what is new.
func (g *guardian) take(all bool) (lines []byte, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	words := g.pending
	if all {
		words = nil
		for _, word := range g.held {
			words = append(words, word)
		}
		for _, word := range g.leases {
			words = append(words, word)
		}
		for _, word := range g.pending {
			if word.Op == guardRestart {
				words = append(words, word)
			}
		}
	}
	g.pending = nil
	for _, word := range words {
		line, err := json.Marshal(word)
		if err != nil {
			return nil, err
		}
		lines = append(append(lines, line...), '\n')
	}
	return lines, nil
}

// run keeps a guard until leave.
func (g *guardian) run() {
	defer close(g.done)
	if !g.enabled() {
		<-g.ending
		return
	}
	backoff := guardMinBackoff
	for starts := 0; ; starts++ {
		if starts > 0 {
			g.metrics.guardStarts.Inc()
		}
		began := time.Now()
		err, ended := g.attend(starts)
		if ended {
			return
		}
		if time.Since(began) > guardSteady {
			backoff = guardMinBackoff
		}
		g.report.Store(&GuardReport{Restarts: uint64(starts + 1), Error: err.Error()})
		g.log.Error("the guard ended", "error", err, "restart_in", backoff)
		g.told.guard(err)
		select {
		case <-time.After(backoff):
		case <-g.ending:
			return
		}
		backoff = min(2*backoff, guardMaxBackoff)
	}
}

// attend starts one guard and tells it everything until it or we end.
func (g *guardian) attend(restarts int) (err error, ended bool) {
	child, err := command.StartCompanion(g.argv...)
	if err != nil {
		return err, false
	}
	g.report.Store(&GuardReport{PID: child.PID(), Since: time.Now(), Restarts: uint64(restarts)})
	g.log.Debug("the guard runs", "pid", child.PID())
	sound := time.NewTimer(guardSteady)
	if restarts == 0 {
		g.told.guard(nil)
	}
	defer sound.Stop()
	all := true
	for {
		if err := g.tell(child, all, guardTellLimit); err != nil {
			child.Kill()
			return err, false
		}
		all = false
		select {
		case <-g.wake:
		case <-sound.C:
			g.told.guard(nil)
		case <-child.Done():
			child.Leave()
			return fmt.Errorf("it should run for as long as we do: %v", child.Err()), false
		case e := <-g.ending:
			g.part(child, e)
			return nil, true
		}
	}
}

func (g *guardian) tell(child *command.Companion, all bool, limit time.Duration) error {
	lines, err := g.take(all)
	if err != nil || len(lines) == 0 {
		return err
	}
	if err := child.Tell(lines, limit); err != nil {
		return fmt.Errorf("tell the guard what is held: %w", err)
	}
	g.log.Debug("the guard was told", "all", all)
	return nil
}

// part leaves the guard: to its end, or to what it is there for.
func (g *guardian) part(child *command.Companion, e ending) {
	_ = g.tell(child, false, guardByeLimit) // one that does not hear it withdraws what the journal has
	g.report.Store(&GuardReport{})
	if !e.goodbye {
		child.Leave()
		return
	}
	line, err := json.Marshal(guardWord{Op: guardBye})
	if err == nil {
		_ = child.Tell(append(line, '\n'), guardByeLimit)
	}
	child.Leave()
	select {
	case <-child.Done():
	case <-time.After(guardByeLimit):
		child.Kill()
	}
}

// leave ends the guardian. Without a goodbye the guard goes on: what is held
// is for a successor, or for it to withdraw.
func (g *guardian) leave(goodbye bool) {
	select {
	case g.ending <- ending{goodbye}:
	case <-g.done:
	}
	<-g.done
}

package vrrp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/internal/kernel/clock"
	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/rawsock"
	"holdfast/internal/runfile"
)

// The guard is a second process of the same program that does nothing until
// the first is gone. It is told line by line, in JSON, what the first holds.
// When the lines end without a goodbye, it gives a successor the time for
// which peers wait anyway, and then withdraws what is still in the journal.
//
// Whoever changes addresses has the lock: the service for as long as it lives,
// and then a successor or the guard.

// guardWord is one line to the guard.
type guardWord struct {
	Op       string          `json:"op"`
	Router   string          `json:"router,omitempty"`
	Index    int             `json:"index,omitempty"` // of the interface
	Name     string          `json:"interface,omitempty"`
	MAC      []byte          `json:"mac,omitempty"`
	Source   netip.Addr      `json:"source,omitzero"`
	Partings []parting       `json:"partings,omitempty"` // adverts with priority 0, ready to be sent
	Patience time.Duration   `json:"patience,omitempty"` // for a successor, from our last sign of life
	Fenced   []fencedAddress `json:"fenced,omitempty"`   // of a lease: what it is about
	Until    time.Duration   `json:"until,omitempty"`    // of a lease: since the boot; then Fenced must be gone
}

// parting is an advert that gives up.
type parting struct {
	To      netip.Addr `json:"to"`
	Payload []byte     `json:"payload"`
}

// What a line says.
const (
	guardHold    = "hold"    // Router holds its addresses, with all that follows
	guardRelease = "release" // it does not any more
	guardRestart = "restart" // a successor comes within Patience
	guardBye     = "bye"     // everything was withdrawn
	guardLease   = "lease"   // Router may have its Fenced addresses until Until, and not again after, unless this is said anew
	guardUnlease = "unlease" // they are gone and stay so
)

// Guard runs the guard: it reads what is held from in, and returns when the
// process that writes there said goodbye, or when what that left behind is
// withdrawn or adopted. The end of ctx (SIGTERM) takes away the patience, not
// the duty.
func Guard(ctx context.Context, in io.Reader, runDir string, log *slog.Logger) error {
	g := &guard{log: log.With("service", "vrrp", "part", "guard"), dir: filepath.Join(runDir, dirName), held: map[string]guardWord{}, tenancies: map[string]*tenancy{}}
	var err error
	if g.at, err = runfile.Here(); err != nil {
		return fmt.Errorf("vrrp: guard: %w", err)
	}
	alive, err := lockShared(filepath.Join(g.dir, guardFile))
	if err != nil {
		return fmt.Errorf("vrrp: guard: %w", err)
	}
	defer alive.Close()
	if err := sign(alive); err != nil { // from now on an older guard is relieved
		return fmt.Errorf("vrrp: guard: %w", err)
	}
	handle, err := link.Open()
	if err != nil {
		return fmt.Errorf("vrrp: guard: %w", err)
	}
	defer handle.Close()
	g.kernel = handle
	if g.listen(in) {
		return nil
	}
	g.evictAll()
	if err := g.withdraw(ctx); err != nil {
		return fmt.Errorf("vrrp: guard: %w", err)
	}
	return nil
}

const (
	successorLimit   = 10 * time.Second // for a successor to have a guard of its own
	lockEvery        = 5 * time.Millisecond
	withdrawAttempts = 10
	withdrawEvery    = 500 * time.Millisecond
)

type guard struct {
	log  *slog.Logger
	dir  string
	at   runfile.Origin
	held map[string]guardWord

	kernel    addresses
	tenancies map[string]*tenancy // by router
}

// listen follows what is held until the other end is gone, and removes what is
// held for longer than its lease. It is true when that said goodbye.
func (g *guard) listen(in io.Reader) (bye bool) {
	words := make(chan guardWord)
	ended := make(chan struct{})
	defer close(ended)
	go g.read(in, words, ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if again := g.enforce(clock.SinceBoot()); again > 0 {
			timer.Reset(min(again, maxDoze))
		}
		select {
		case word, ok := <-words:
			if !ok {
				return false
			}
			if g.take(word) {
				return true
			}
		case <-timer.C:
		}
	}
}

// maxDoze bounds how long the guard sleeps over a lease: its timer does not
// count while the machine sleeps, and the lease does.
const maxDoze = 100 * time.Millisecond

// read gives the lines of in as words, and closes them at its end.
func (g *guard) read(in io.Reader, words chan<- guardWord, ended <-chan struct{}) {
	defer close(words)
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var word guardWord
		if err := json.Unmarshal(lines.Bytes(), &word); err != nil {
			g.log.Error("a line that can't be read", "error", err)
			continue
		}
		select {
		case words <- word:
		case <-ended:
			return
		}
	}
	if err := lines.Err(); err != nil {
		g.log.Error("read what is held", "error", err)
	}
}

func (g *guard) take(word guardWord) (bye bool) {
	switch word.Op {
	case guardHold:
		g.held[word.Router] = word
	case guardRelease:
		delete(g.held, word.Router)
	case guardRestart:
		if held, ok := g.held[word.Router]; ok {
			held.Patience = word.Patience
			g.held[word.Router] = held
		}
	case guardLease:
		g.tenancies[word.Router] = &tenancy{until: word.Until, addresses: word.Fenced}
	case guardUnlease:
		delete(g.tenancies, word.Router)
	case guardBye:
		return true
	}
	return false
}

// withdraw withdraws router by router, as the patience with each ends, until
// a successor has taken over. What fails is tried again: nobody else will.
func (g *guard) withdraw(ctx context.Context) error {
	died := time.Now()
	words := slices.SortedFunc(maps.Values(g.held), func(a, b guardWord) int { return int(a.Patience - b.Patience) })
	g.log.Warn("the process that held addresses is gone without a word", "routers", len(words))
	for {
		due := len(words)
		if due > 0 { // without routers the journal may still have what was being removed
			sleep(ctx, time.Until(died.Add(words[0].Patience)))
			due = 1
		}
		for due < len(words) && (ctx.Err() != nil || !time.Now().Before(died.Add(words[due].Patience))) {
			due++
		}
		lock, err := g.takeLock()
		if err != nil || lock == nil {
			return err
		}
		err = g.insist(words[:due], due == len(words))
		lock.Close()
		if words = words[due:]; len(words) == 0 {
			return err
		}
		if err != nil {
			g.log.Error("withdraw what was left", "error", err)
		}
	}
}

// takeLock takes the service's lock. It gives none when a successor is at work,
// which is so once that has a guard of its own: one that ends before leaves
// things to us, and who only looks who has the lock is no successor.
func (g *guard) takeLock() (*os.File, error) {
	for deadline := time.Now().Add(successorLimit); time.Now().Before(deadline); time.Sleep(lockEvery) {
		if pid := signedBy(filepath.Join(g.dir, guardFile)); pid != os.Getpid() {
			g.log.Info("a successor has taken over", "guard", pid)
			return nil, nil
		}
		lock, err := lockExclusive(filepath.Join(g.dir, lockFile))
		if !errors.Is(err, errLocked) {
			return lock, err
		}
	}
	g.log.Info("a successor has taken over", "guard", "none")
	return nil, nil
}

// insist withdraws routers, and tries again what failed.
func (g *guard) insist(words []guardWord, last bool) error {
	for attempt := 1; ; attempt++ {
		err := g.withdrawNow(words, last)
		if err == nil || attempt == withdrawAttempts {
			return err
		}
		g.log.Error("an address was not withdrawn, trying again", "error", err)
		time.Sleep(withdrawEvery)
	}
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// withdrawNow withdraws routers; the last time whatever else is in the
// journal, too. The error is what is still there. The peers of those of which
// the journal has nothing were told, or nothing was held.
func (g *guard) withdrawNow(words []guardWord, last bool) error {
	handle, err := link.Open()
	if err != nil {
		return err
	}
	defer handle.Close()
	journal, _, err := openJournal(g.dir, g.at)
	if err != nil {
		return err
	}
	concerned := func(router string) bool {
		return last || slices.ContainsFunc(words, func(w guardWord) bool { return w.Router == router })
	}
	var failed []error
	var gone []entry
	for _, e := range journal.list() {
		if !concerned(e.Router) {
			continue
		}
		if err := handle.Remove(link.Addr{Link: e.Index, Prefix: e.Prefix}); err != nil {
			failed = append(failed, fmt.Errorf("router %s: remove %s from %s: %w", e.Router, e.Prefix, e.Name, err))
			continue
		}
		gone = append(gone, e)
		g.log.Warn("withdrew an address", "router", e.Router, "address", e.Prefix, "interface", e.Name)
	}
	failed = append(failed, journal.remove(gone))
	for i := range words {
		if !slices.ContainsFunc(gone, func(e entry) bool { return e.Router == words[i].Router }) {
			continue
		}
		if err := words[i].part(); err != nil {
			g.log.Error("peers were not told, they notice by themselves", "router", words[i].Router, "error", err)
		}
	}
	return errors.Join(failed...)
}

// part sends the adverts with priority 0.
func (w *guardWord) part() error {
	if !w.Source.IsValid() {
		return nil
	}
	socket, err := rawsock.Open(rawsock.Interface{Index: w.Index, Name: w.Name, MAC: net.HardwareAddr(w.MAC)}, w.Source.Is6())
	if err != nil {
		return err
	}
	defer socket.Close()
	for _, p := range w.Partings {
		err = errors.Join(err, socket.Send(p.Payload, w.Source, p.To))
	}
	return err
}

// guardAlive tells whether a guard of a predecessor lives: then what the
// journal has was advertised a moment ago.
func guardAlive(dir string) bool {
	file, err := lockExclusive(filepath.Join(dir, guardFile))
	if err != nil {
		return errors.Is(err, errLocked)
	}
	file.Close()
	return false
}

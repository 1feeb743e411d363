// Package health keeps the named conditions of this process: what is wrong
// with ourselves, since when, and what to do about it. (Checks of services are
// internal/check's.)
package health

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Severity tells how urgent a condition is.
type Severity string

// Severities.
const (
	Info    Severity = "info"    // worth knowing; nothing to do
	Warning Severity = "warning" // the service goes on; someone should look in working hours
	Error   Severity = "error"   // something users need does not work
)

// Condition is one thing that is wrong now.
type Condition struct {
	Name     string    `json:"name"` // stable, dotted: "config.skew", "raftstore.no-leader"
	Severity Severity  `json:"severity"`
	Message  string    `json:"message"` // what, where, and what to do
	Since    time.Time `json:"since"`
}

// Board holds the conditions. Its methods never block and may be called from
// any goroutine; a nil Board ignores everything.
type Board struct {
	now     func() time.Time
	mu      sync.Mutex
	current map[string]Condition
	onRaise func(Condition)
	onClear func(Condition)
}

// NewBoard returns an empty board. raised and cleared (either may be nil) are
// called when a condition appears or changes its message, and when it ends.
func NewBoard(now func() time.Time, raised, cleared func(Condition)) *Board {
	return &Board{now: now, current: map[string]Condition{}, onRaise: raised, onClear: cleared}
}

// Raise sets a condition. Raising it again keeps its Since.
func (b *Board) Raise(name string, severity Severity, message string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	c, had := b.current[name]
	changed := !had || c.Severity != severity || c.Message != message
	if !had {
		c = Condition{Name: name, Since: b.now()}
	}
	c.Severity, c.Message = severity, message
	b.current[name] = c
	b.mu.Unlock()
	if changed && b.onRaise != nil {
		b.onRaise(c)
	}
}

// Clear ends a condition; one that is not there is ignored.
func (b *Board) Clear(name string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	c, had := b.current[name]
	delete(b.current, name)
	b.mu.Unlock()
	if had && b.onClear != nil {
		b.onClear(c)
	}
}

// Conditions lists what is wrong now, by name.
func (b *Board) Conditions() []Condition {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Condition, 0, len(b.current))
	for _, c := range b.current {
		list = append(list, c)
	}
	slices.SortFunc(list, func(x, y Condition) int { return strings.Compare(x.Name, y.Name) })
	return list
}

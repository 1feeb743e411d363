// Package history records what clients of a store did and saw while faults
// happen, and checks that it is linearizable.
package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// OpKind is what a client asked of a register.
type OpKind string

// The operations. A CAS replaces Old by New, if Old is there. A Release makes
// the key absent, if Old is there, and does not tell whether it was: the end of
// a session that may hold a lock.
const (
	Read  OpKind = "read"
	Write OpKind = "write"
	CAS   OpKind = "cas"

	Release OpKind = "release"
)

// Op is one operation on the register of a key. Values that are written are
// unique in a history, so that what a read saw names who wrote it; "" is an
// absent key. A lock is a register too: CAS from "" takes it, back gives it up.
type Op struct {
	Key      string
	Kind     OpKind
	Old, New string
	Via      string // which server was asked; for the story of a key
}

// Outcome is how an operation ended.
type Outcome struct {
	Value   string // of a Read
	Swapped bool   // of a CAS
	Unknown bool   // it may have happened, may happen yet, or never
	// Refused: it surely was not carried out. It takes part in no order: were it in
	// effect after all, a read would show it.
	Refused bool
	Said    string // what came with it, for the story of a key
}

// History records what clients did and saw. Its methods may be called from any
// goroutine.
type History struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation
}

// New begins an empty history.
func New() *History { return &History{start: time.Now()} }

// Begin notes the time of a call; the function it returns records the
// operation with its outcome. Not calling it leaves the operation out.
func (h *History) Begin(client int, op Op) func(Outcome) {
	called := int64(time.Since(h.start))
	return func(o Outcome) {
		returned := int64(time.Since(h.start))
		if o.Unknown {
			returned = math.MaxInt64
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: op, Call: called, Output: o, Return: returned})
	}
}

// Count tells how many operations have a known and an unknown outcome.
func (h *History) Count() (known, unknown int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.ops {
		switch o := op.Output.(Outcome); {
		case o.Unknown:
			unknown++
		case !o.Refused:
			known++
		}
	}
	return known, unknown
}

// Check looks for an order of the operations that explains every outcome and
// respects what ended before what began. It gives up after limit. The error
// names the keys for which there is none.
func (h *History) Check(limit time.Duration) error {
	h.mu.Lock()
	byKey, told := map[string][]porcupine.Operation{}, map[string][]porcupine.Operation{}
	for _, op := range h.ops {
		key := op.Input.(Op).Key
		told[key] = append(told[key], op)
		o := op.Output.(Outcome)
		if o.Refused || o.Unknown && op.Input.(Op).Kind == Read {
			continue // says nothing
		}
		byKey[key] = append(byKey[key], op)
	}
	h.mu.Unlock()
	var illegal, undecided []string
	deadline := time.Now().Add(limit)
	for key, ops := range byKey {
		// Zero would mean no limit.
		switch porcupine.CheckOperationsTimeout(registerModel(), ops, max(time.Until(deadline), time.Millisecond)) {
		case porcupine.Illegal:
			illegal = append(illegal, key)
		case porcupine.Unknown:
			undecided = append(undecided, key)
		}
	}
	slices.Sort(illegal)
	slices.Sort(undecided)
	switch {
	case len(illegal) > 0:
		var all strings.Builder
		for _, key := range illegal {
			all.WriteString(story(key, told[key]))
		}
		return fmt.Errorf("history: no order explains what clients saw of %q%s", illegal, all.String())
	case len(undecided) > 0:
		return fmt.Errorf("history: not decided within %v about %q", limit, undecided)
	}
	return nil
}

// story tells the operations on a key in the order in which they were begun: who
// looks for what went wrong has nothing else.
func story(key string, ops []porcupine.Operation) string {
	ops = slices.SortedFunc(slices.Values(ops), func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var text strings.Builder
	for _, op := range ops {
		in, out := op.Input.(Op), op.Output.(Outcome)
		until, ended := "?", ""
		if !out.Unknown {
			until = time.Duration(op.Return).Round(time.Microsecond).String()
		}
		switch {
		case out.Unknown:
			ended = "unknown"
		case out.Refused:
			ended = "refused"
		case in.Kind == Read:
			ended = fmt.Sprintf("saw %q", out.Value)
		case in.Kind == CAS:
			ended = fmt.Sprintf("swapped: %t", out.Swapped)
		default:
			ended = "done"
		}
		fmt.Fprintf(&text, "\n%s: %v to %s, client %d", key, time.Duration(op.Call).Round(time.Microsecond), until, op.ClientId)
		if in.Via != "" {
			fmt.Fprintf(&text, " via %s", in.Via)
		}
		fmt.Fprintf(&text, ": %s %q -> %q: %s", in.Kind, in.Old, in.New, ended)
		if out.Said != "" {
			fmt.Fprintf(&text, " (%s)", out.Said)
		}
	}
	return text.String()
}

// registerModel is a register with compare-and-swap, absent at first.
func registerModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(before, input, output any) (bool, any) {
			return step(before.(string), input.(Op), output.(Outcome))
		},
	}
}

// step tells whether op, with this outcome, is possible when the register
// holds value, and what it holds then.
func step(value string, op Op, o Outcome) (possible bool, after string) {
	switch op.Kind {
	case Read:
		return o.Value == value, value
	case Write:
		return true, op.New
	}
	if op.Kind == Release {
		if value == op.Old {
			value = ""
		}
		return true, value
	}
	swaps := value == op.Old
	if swaps {
		value = op.New
	}
	return o.Unknown || o.Swapped == swaps, value
}

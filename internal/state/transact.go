package state

import "fmt"

// Verbs of a transaction's operations beside those of KV.
const (
	Get            Verb = "get"              // the entry must be there
	GetOrEmpty     Verb = "get-or-empty"     // no result when it is not
	GetTree        Verb = "get-tree"         // all entries with the prefix
	CheckIndex     Verb = "check-index"      // Entry.ModifyIndex must be the stored one's
	CheckSession   Verb = "check-session"    // Entry.Session must hold the key
	CheckNotExists Verb = "check-not-exists" // the key must not be there
)

// MaxOps is the most operations of a transaction.
const MaxOps = 128

// Transact carries out operations in their order; all, or with an error, which
// begins with "op N: ", none. What they found is kept for a while:
// Store.Outcome.
type Transact struct {
	Ops []KV `codec:"ops"`
}

func (Transact) kind() kind { return kindTransact }

// OpError says which operation made a transaction fail. Its text, which begins
// with "op N: ", survives forwarding.
type OpError struct {
	Op  int
	Err error
}

func (e *OpError) Error() string { return fmt.Sprintf("op %d: %v", e.Op, e.Err) }
func (e *OpError) Unwrap() error { return e.Err }

// Outcome is what one operation of a transaction gave: entries as they were
// after it. Writes give theirs without the value, deletions nothing.
type Outcome struct {
	Entries []*Entry
}

func (t *tx) transact(c Transact) error {
	if len(c.Ops) == 0 || len(c.Ops) > MaxOps {
		return invalid("a transaction has %d operations, not 1 to %d", len(c.Ops), MaxOps)
	}
	outcomes := make([]Outcome, 0, len(c.Ops))
	for i, op := range c.Ops {
		found, err := t.operate(op)
		if err != nil {
			return &OpError{i, err}
		}
		outcomes = append(outcomes, Outcome{found})
	}
	t.outcomes = outcomes
	return nil
}

func (t *tx) operate(op KV) ([]*Entry, error) {
	stored := func() *Entry { return t.entry(op.Entry.Key) }
	what := fmt.Sprintf("key %q", op.Entry.Key)
	switch e := stored(); op.Verb {
	case Get, GetOrEmpty:
		if e == nil && op.Verb == Get {
			return nil, fmt.Errorf("%w: %s doesn't exist", ErrConflict, what)
		}
		return present(e), nil
	case GetTree:
		return list[Entry](t.txn, string(TableKV), "id_prefix", []byte(op.Entry.Key)), nil
	case CheckIndex:
		if e == nil || e.ModifyIndex != op.Entry.ModifyIndex {
			return nil, fmt.Errorf("%w: current modify index of %s does not match", ErrConflict, what)
		}
		return present(bare(e)), nil
	case CheckSession:
		if e == nil || e.Session != op.Entry.Session {
			return nil, fmt.Errorf("%w: %s is not held by session %.64q", ErrConflict, what, op.Entry.Session)
		}
		return present(bare(e)), nil
	case CheckNotExists:
		if e != nil {
			return nil, fmt.Errorf("%w: %s exists", ErrConflict, what)
		}
		return nil, nil
	}
	if err := t.kv(op); err != nil {
		return nil, err
	}
	if e := stored(); e != nil {
		return present(bare(e)), nil
	}
	return nil, nil
}

func present(e *Entry) []*Entry {
	if e == nil {
		return nil
	}
	return []*Entry{e}
}

// bare is an entry without its value.
func bare(e *Entry) *Entry {
	without := *e
	without.Value = nil
	return &without
}

// outcomesKept is how many transactions' outcomes a replica remembers.
const outcomesKept = 1024

// outcomes are those of the latest transactions, by their index.
type outcomes struct {
	of    map[uint64][]Outcome
	order []uint64
}

func (o *outcomes) keep(index uint64, found []Outcome) {
	if o.of == nil {
		o.of = map[uint64][]Outcome{}
	}
	if len(o.order) == outcomesKept {
		delete(o.of, o.order[0])
		o.order = o.order[1:]
	}
	o.of[index] = found
	o.order = append(o.order, index)
}

// Outcome tells what the transaction at an index of the log found, an element
// an operation; not ok for one that is older than the last 1024, or that this
// replica got by way of a snapshot. It belongs to this replica alone.
func (s *Store) Outcome(index uint64) ([]Outcome, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.outcomes.of[index]
	return found, ok
}

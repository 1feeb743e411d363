package state

import (
	"fmt"
	"slices"
)

func (t *tx) session(id string) *Session {
	return first[Session](t.txn, string(TableSession), "id", key(id))
}

func (t *tx) delay(k string) *LockDelay {
	return first[LockDelay](t.txn, string(TableDelay), "id", []byte(k))
}

func (t *tx) createSession(c CreateSession) error {
	s, err := cleanSession(c.Session)
	if err != nil {
		return err
	}
	node := t.node(s.Node)
	if node == nil {
		return invalid("Missing node registration: %q", s.Node)
	}
	if t.session(s.ID) != nil {
		return fmt.Errorf("%w: session %q is there already", ErrConflict, s.ID)
	}
	for _, id := range slices.Concat(s.NodeChecks, s.ServiceChecks) {
		switch chk := t.check(node.Name, id); {
		case chk == nil:
			return invalid("Missing check '%s' registration", id)
		case chk.Status == Critical:
			return invalid("Check '%s' is in critical state", id)
		}
	}
	s.Node = node.Name
	s.CreateIndex, s.ModifyIndex, s.RenewIndex = t.index, t.index, t.index
	t.insert(string(TableSession), s)
	t.touchSession(s)
	return nil
}

// touchSession says that a session came or went.
func (t *tx) touchSession(s *Session) {
	t.touch(ofSession, s.ID)
	t.touch(ofNodeSessions, Fold(s.Node))
	t.touch(ofTable, allSessions)
	t.mark(TableSession, s.ID)
}

func (t *tx) destroySession(c DestroySession) error {
	s := t.session(c.ID)
	if s == nil || c.RenewIndex != 0 && c.RenewIndex != s.RenewIndex {
		return nil
	}
	t.endSession(s)
	return nil
}

func (t *tx) renewSession(c RenewSession) error {
	s := t.session(c.ID)
	if s == nil {
		return fmt.Errorf("%w: session %.64q", ErrNotFound, c.ID)
	}
	renewed := *s
	renewed.RenewIndex = t.index
	t.insert(string(TableSession), &renewed)
	t.mark(TableSession, s.ID)
	return nil
}

func (t *tx) endDelay(c EndDelay) error {
	if d := t.delay(c.Key); d != nil && d.Index == c.Index {
		t.delete(string(TableDelay), d)
		t.mark(TableDelay, c.Key)
	}
	return nil
}

// endSession removes a session, frees its keys or deletes them, and puts them
// under its lock-delay.
func (t *tx) endSession(s *Session) {
	t.delete(string(TableSession), s)
	t.touchSession(s)
	for _, e := range list[Entry](t.txn, string(TableKV), "session", key(s.ID)) {
		if s.LockDelay >= MinLockDelay {
			t.insert(string(TableDelay), &LockDelay{Key: e.Key, Delay: s.LockDelay, Index: t.index})
			t.mark(TableDelay, e.Key)
		}
		if s.Behavior == BehaviorDelete {
			t.deleteEntry(e)
			continue
		}
		free := *e
		free.Session, free.ModifyIndex = "", t.index
		t.insert(string(TableKV), &free)
		t.mark(TableKV, e.Key)
	}
}

// endSessionsOf ends the sessions of a node that goes.
func (t *tx) endSessionsOf(node string) {
	for _, s := range list[Session](t.txn, string(TableSession), "node", key(Fold(node))) {
		t.endSession(s)
	}
}

// endSessionsWith ends the sessions that stand on a check which is critical or
// gone.
func (t *tx) endSessionsWith(c *Check) {
	for _, s := range list[Session](t.txn, string(TableSession), "node", key(Fold(c.Node))) {
		if slices.Contains(s.NodeChecks, c.ID) || slices.Contains(s.ServiceChecks, c.ID) {
			t.endSession(s)
		}
	}
}

// acquire makes e the session's, with its value. The holder may do it again.
func (t *tx) acquire(old, e *Entry) error {
	if e.Session == "" || t.session(e.Session) == nil {
		return &SessionError{ID: e.Session}
	}
	lock := uint64(1)
	switch {
	case old == nil:
	case old.Session == e.Session:
		lock = old.LockIndex
	case old.Session != "":
		return fmt.Errorf("%w: key %q is held by session %s", ErrConflict, e.Key, old.Session)
	default:
		lock = old.LockIndex + 1
	}
	if d := t.delay(e.Key); d != nil && (old == nil || old.Session != e.Session) {
		return fmt.Errorf("%w: key %q is under the lock-delay of a session that ended at index %d", ErrConflict, e.Key, d.Index)
	}
	e.LockIndex = lock
	t.storeEntry(old, e)
	return nil
}

// release frees a key that the session holds, and gives it e's value.
func (t *tx) release(old, e *Entry) error {
	if e.Session == "" || old == nil || old.Session != e.Session {
		return fmt.Errorf("%w: key %q is not held by session %.64q", ErrConflict, e.Key, e.Session)
	}
	e.LockIndex, e.Session = old.LockIndex, ""
	t.storeEntry(old, e)
	return nil
}

// SessionError says that a key was to be acquired for a session that is not
// there. Its text is Consul's, which clients look for.
type SessionError struct{ ID string }

func (e *SessionError) Error() string { return fmt.Sprintf("invalid session %q", e.ID) }

// Unwrap makes it an ErrInvalid.
func (e *SessionError) Unwrap() error { return ErrInvalid }

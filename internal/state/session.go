package state

import (
	"fmt"
	"time"
)

// Session stands for someone who may hold keys: a program on a node, for as
// long as the node's checks, and the program's renewals, say that it lives.
type Session struct {
	ID            string        `codec:"id"`                 // unique; chosen by who proposes, usually a UUID
	Name          string        `codec:"name,omitempty"`     // for people
	Node          string        `codec:"node"`               // the session ends with it
	NodeChecks    []string      `codec:"checks,omitempty"`   // IDs of the node's own checks; the session ends when one is critical or goes
	ServiceChecks []string      `codec:"services,omitempty"` // IDs of checks of the node's services, likewise
	Behavior      Behavior      `codec:"behavior"`           // what becomes of its keys; unless said: Release
	TTL           time.Duration `codec:"ttl,omitempty"`      // 0: needs no renewal. The leader ends it between one and two TTLs after the last renewal
	LockDelay     time.Duration `codec:"delay,omitempty"`    // for how long nobody gets its keys after its end

	// RenewIndex is the entry of the log that created it or renewed it last.
	// It moves without an index or a watch: a renewal is nobody's news.
	RenewIndex  uint64 `codec:"renew,omitempty"`
	CreateIndex uint64 `codec:"create,omitempty"`
	ModifyIndex uint64 `codec:"modify,omitempty"`
}

// Behavior is what happens to the keys of a session that ends.
type Behavior string

// The behaviours, in Consul's words.
const (
	BehaviorRelease Behavior = "release"
	BehaviorDelete  Behavior = "delete"
)

// Limits of a session.
const (
	MaxSessionChecks = 64
	MaxLockDelay     = 60 * time.Second
	MaxSessionTTL    = 24 * time.Hour
	// MinLockDelay is the shortest lock-delay that has an effect: a shorter one
	// is over before anybody's next write is in order. Clients that want none
	// ask for a millisecond, since Consul once took 0 for its default.
	MinLockDelay = 10 * time.Millisecond
)

// LockDelay is a key that nobody may acquire yet, because the session that
// held it ended otherwise than by a release. It is in the tables so that it
// outlives its leader: Apply refuses the key for as long as the row is there,
// and the leader removes the row (EndDelay) when Delay has passed on its own
// clock. A new leader measures anew: a delay may be longer than asked, never
// shorter.
type LockDelay struct {
	Key   string        `codec:"key"`
	Delay time.Duration `codec:"delay"`
	Index uint64        `codec:"index"` // of the command that ended the session
}

// CreateSession makes a session. Its node must be there, and its checks, none
// of them critical; else it is ErrInvalid. An ID that is there already is
// ErrConflict.
type CreateSession struct {
	Session Session `codec:"session"`
}

// DestroySession ends a session. One that is not there is no error.
type DestroySession struct {
	ID string `codec:"id"`
	// RenewIndex, when not 0, makes the command void unless it is the
	// session's: who finds that a session has expired must have seen its
	// last renewal.
	RenewIndex uint64 `codec:"renew,omitempty"`
}

// RenewSession says that the holder of a session lives; ErrNotFound when the
// session is gone.
type RenewSession struct {
	ID string `codec:"id"`
}

// EndDelay lets a key be acquired again. It is void unless Index is the
// delay's.
type EndDelay struct {
	Key   string `codec:"key"`
	Index uint64 `codec:"index"`
}

func (CreateSession) kind() kind  { return kindCreateSession }
func (DestroySession) kind() kind { return kindDestroySession }
func (RenewSession) kind() kind   { return kindRenewSession }
func (EndDelay) kind() kind       { return kindEndDelay }

// Session finds a session; nil when absent.
func (s *Snapshot) Session(ws WatchSet, id string) (*Session, uint64) {
	index := s.watch(ws, subject{ofSession, id})
	return first[Session](s.txn, string(TableSession), "id", key(id)), index
}

// Sessions lists all sessions by ID.
func (s *Snapshot) Sessions(ws WatchSet) ([]*Session, uint64) {
	index := s.watch(ws, subject{ofTable, allSessions})
	return list[Session](s.txn, string(TableSession), "id", nil), index
}

// NodeSessions lists the sessions of a node by ID.
func (s *Snapshot) NodeSessions(ws WatchSet, node string) ([]*Session, uint64) {
	node = Fold(node)
	index := s.watch(ws, subject{ofNodeSessions, node})
	return list[Session](s.txn, string(TableSession), "node", key(node)), index
}

// LockDelays lists the keys that nobody may acquire yet, by key. They have no
// index; Since names them.
func (s *Snapshot) LockDelays() []*LockDelay {
	return list[LockDelay](s.txn, string(TableDelay), "id", nil)
}

func cleanSession(c Session) (*Session, error) {
	if err := checkName("ID of the session", c.ID); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("session %q", c.ID)
	if len(c.Name) > MaxName {
		return nil, invalid("%s: name has %d bytes, more than %d", what, len(c.Name), MaxName)
	}
	if err := checkName(what+": node", c.Node); err != nil {
		return nil, err
	}
	if n := len(c.NodeChecks) + len(c.ServiceChecks); n > MaxSessionChecks {
		return nil, invalid("%s has %d checks, more than %d", what, n, MaxSessionChecks)
	}
	switch c.Behavior {
	case "":
		c.Behavior = BehaviorRelease
	case BehaviorRelease, BehaviorDelete:
	default:
		return nil, invalid("%s: behaviour %.32q is not %q or %q", what, c.Behavior, BehaviorRelease, BehaviorDelete)
	}
	if c.TTL < 0 || c.TTL > MaxSessionTTL {
		return nil, invalid("%s: TTL %s is not between 0 and %s", what, c.TTL, MaxSessionTTL)
	}
	if c.LockDelay < 0 || c.LockDelay > MaxLockDelay {
		return nil, invalid("%s: lock-delay %s is not between 0 and %s", what, c.LockDelay, MaxLockDelay)
	}
	c.NodeChecks, c.ServiceChecks = cleanTags(c.NodeChecks), cleanTags(c.ServiceChecks)
	return &c, nil
}

package state

import (
	"context"
	"errors"
)

// Command is a change that Raft orders. The set is closed: services keep
// documents instead of adding kinds of their own.
type Command interface{ kind() kind }

// Register adds or replaces a node, and with it services and checks of that
// node; all of it or, with an error, nothing. What it does not name stays. Rows
// that are equal to what is stored keep their ModifyIndex, so that repeating a
// registration wakes nobody.
//
// A node that comes with another ID takes the new one: it is the same machine
// after its disk was wiped. An empty ID keeps the one stored. A service that
// comes with another name takes its checks along. A check must speak of a
// service that is stored or in the same command, or of the node.
type Register struct {
	Node     Node      `codec:"node"`
	Services []Service `codec:"services,omitempty"` // Node may be left empty
	Checks   []Check   `codec:"checks,omitempty"`   // Node may be left empty
}

// Deregister removes checks, services (with their checks) or, when both lists
// are empty, the whole node with all that is on it. What does not exist is no
// error.
type Deregister struct {
	Node     string   `codec:"node"`
	Services []string `codec:"services,omitempty"` // service IDs
	Checks   []string `codec:"checks,omitempty"`   // check IDs
	// NodeID, when not empty, makes the command void unless it is the
	// node's: a late clean-up must not remove a node that came back.
	NodeID string `codec:"node_id,omitempty"`
}

// UpdateCheck changes the state of checks that exist: the short path of a
// check's transition. A check that is not there is skipped.
type UpdateCheck struct {
	Node    string       `codec:"node"`
	Updates []CheckState `codec:"updates"`
}

// CheckState is the changing part of a check.
type CheckState struct {
	ID     string `codec:"id"`
	Status Status `codec:"status"`
	Output string `codec:"output,omitempty"`
}

// Verb says what a KV or document command does.
type Verb string

// The verbs. CAS and DeleteCAS fail with ErrConflict unless the entry's
// ModifyIndex equals the one given (0: must not exist). Setting what is stored
// already is no change and wakes nobody, but a CAS that succeeds always moves
// ModifyIndex: of several on one index exactly one succeeds. Deleting what is
// not there is no error.
const (
	Set        Verb = "set"
	CAS        Verb = "cas"
	Delete     Verb = "delete"
	DeleteCAS  Verb = "delete-cas"
	DeleteTree Verb = "delete-tree" // every key with the prefix; KV only
	// Acquire and Release set the entry and who holds it, for Entry.Session;
	// KV only. Both fail with ErrConflict when another session holds the key,
	// Acquire also while the key is under a lock-delay, and with a
	// *SessionError for a session that is not there.
	Acquire Verb = "acquire"
	Release Verb = "release"
)

// KV changes the key-value table. Entry.ModifyIndex is what CAS compares,
// Entry.Session who acquires or releases. LockIndex and CreateIndex of the
// command are not looked at, nor Session by other verbs: those of the stored
// entry stay. DeleteTree takes the prefix in Entry.Key; an empty
// one means every key.
type KV struct {
	Verb  Verb  `codec:"verb"`
	Entry Entry `codec:"entry"`
}

// PutDocument changes a document. Document.ModifyIndex is what CAS compares.
// Verb is any but DeleteTree.
type PutDocument struct {
	Verb     Verb     `codec:"verb"`
	Document Document `codec:"document"`
}

// SetCluster writes the record about the store itself: once when it is
// formed, and when the feature level rises. An ID that differs from the one
// stored, or a lower level, fails with ErrConflict. The first name stays.
type SetCluster struct {
	Cluster Cluster `codec:"cluster"`
}

// What Apply answers when a command can't be carried out. They are values of
// the command's result, not failures of the store, and survive forwarding.
var (
	ErrConflict = errors.New("conflict: the entry was changed by another writer")
	ErrNotFound = errors.New("not found")
	ErrInvalid  = errors.New("invalid command")
)

// Errors of a Proposer. They survive forwarding; test with errors.Is.
var (
	// ErrNoLeader: the write was refused and has not happened.
	ErrNoLeader = errors.New("no cluster leader")
	// ErrUnknownOutcome: the leader was lost after it took the command; it
	// may or may not have happened. Read before writing again.
	ErrUnknownOutcome = errors.New("outcome unknown: leadership was lost while the write was under way")
)

// Proposer puts a command in order. It blocks until the command is applied
// on this node (read your writes), is refused, or ctx ends. The index is the
// command's place in the log.
type Proposer interface {
	Propose(ctx context.Context, cmd Command) (index uint64, err error)
}

type kind uint8

const (
	kindRegister    kind = 1
	kindDeregister  kind = 2
	kindUpdateCheck kind = 3
	kindKV          kind = 4
	kindDocument    kind = 5
	kindCluster     kind = 6

	kindCreateSession  kind = 7
	kindDestroySession kind = 8
	kindRenewSession   kind = 9
	kindEndDelay       kind = 10
	kindTransact       kind = 11
)

func (Register) kind() kind    { return kindRegister }
func (Deregister) kind() kind  { return kindDeregister }
func (UpdateCheck) kind() kind { return kindUpdateCheck }
func (KV) kind() kind          { return kindKV }
func (PutDocument) kind() kind { return kindDocument }
func (SetCluster) kind() kind  { return kindCluster }

package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"holdfast/internal/state"
)

// Outcomes tells what a transaction found: *state.Store.
type Outcomes interface {
	Outcome(index uint64) ([]state.Outcome, bool)
}

// txnOp is an operation of /v1/txn. Operations on nodes, services and checks
// are refused.
type txnOp struct {
	KV      *txnKV
	Node    any
	Service any
	Check   any
	Intention,
	Session any
}

type txnKV struct {
	Verb    string
	Key     string
	Value   []byte
	Flags   uint64
	Index   uint64
	Session string
}

// txnVerbs are Consul's words for the verbs of a transaction.
var txnVerbs = map[string]state.Verb{
	"set": state.Set, "cas": state.CAS, "lock": state.Acquire, "unlock": state.Release,
	"get": state.Get, "get-or-empty": state.GetOrEmpty, "get-tree": state.GetTree,
	"check-index": state.CheckIndex, "check-session": state.CheckSession, "check-not-exists": state.CheckNotExists,
	"delete": state.Delete, "delete-tree": state.DeleteTree, "delete-cas": state.DeleteCAS,
}

// Limits of a transaction.
const (
	maxTxnOps = 128     // Consul's
	maxTxn    = 3 << 20 // bytes of the body: base64 in it, and a command has at most 4 MiB
)

type txnError struct {
	OpIndex int
	What    string
}

type txnResult struct {
	KV entryJSON
}

// transaction translates the operations.
func transaction(ops []txnOp) (state.Transact, error) {
	if len(ops) > maxTxnOps {
		return state.Transact{}, fault(http.StatusRequestEntityTooLarge, "Transaction contains too many operations (%d > %d)", len(ops), maxTxnOps)
	}
	var made state.Transact
	for i, op := range ops {
		if op.KV == nil {
			return made, fault(http.StatusBadRequest, "operation %d: only operations on keys (KV) are offered", i)
		}
		verb, ok := txnVerbs[op.KV.Verb]
		if !ok {
			return made, fault(http.StatusBadRequest, "operation %d: unknown verb %q; want one of %s", i, op.KV.Verb, strings.Join(sortedKeys(txnVerbs), ", "))
		}
		if len(op.KV.Value) > state.MaxValue {
			return made, fault(http.StatusRequestEntityTooLarge, "Value for key %q is too large (%d > %d bytes)", op.KV.Key, len(op.KV.Value), state.MaxValue)
		}
		made.Ops = append(made.Ops, state.KV{Verb: verb, Entry: state.Entry{
			Key: op.KV.Key, Value: op.KV.Value, Flags: op.KV.Flags, Session: op.KV.Session, ModifyIndex: op.KV.Index,
		}})
	}
	return made, nil
}

// txn carries out operations together: 200 with what they found, or 409 with
// the one that failed.
func (s *Server) txn(c *call) error {
	data, err := s.body(c, maxTxn)
	if err != nil {
		return err
	}
	var ops []txnOp
	if err := decodeStrict(data, &ops); err != nil {
		return fault(http.StatusBadRequest, "Failed to parse body: %v", err)
	}
	command, err := transaction(ops)
	if err != nil {
		return err
	}
	for i, op := range command.Ops {
		if err := s.permitKV(c, op); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	if len(command.Ops) == 0 {
		return s.reply(c, map[string]any{"Results": []txnResult{}, "Errors": nil})
	}
	index, err := s.propose(c, command)
	if failed, ok := failedOp(err); ok {
		return s.conflict(c, map[string]any{"Results": nil, "Errors": []txnError{failed}})
	}
	if err != nil {
		return err
	}
	found, ok := s.outcomes.Outcome(index)
	if !ok {
		return fault(http.StatusInternalServerError, "the transaction was carried out at index %d; what it found is no longer known", index)
	}
	results := []txnResult{}
	for _, outcome := range found {
		for _, e := range outcome.Entries {
			results = append(results, txnResult{entryOf(e)})
		}
	}
	return s.reply(c, map[string]any{"Results": results, "Errors": nil})
}

// failedOp reads which operation failed out of an error that may have crossed a
// connection, where only its text survives.
func failedOp(err error) (txnError, bool) {
	if !errors.Is(err, state.ErrConflict) && !errors.Is(err, state.ErrInvalid) {
		return txnError{}, false
	}
	text := err.Error()
	at := strings.Index(text, "op ")
	if at < 0 {
		return txnError{}, false
	}
	var failed txnError
	if _, scan := fmt.Sscanf(text[at:], "op %d:", &failed.OpIndex); scan != nil {
		return txnError{}, false
	}
	_, failed.What, _ = strings.Cut(text[at:], ": ")
	failed.What = strings.TrimPrefix(failed.What, state.ErrConflict.Error()+": ")
	failed.What = strings.TrimPrefix(failed.What, state.ErrInvalid.Error()+": ")
	return failed, true
}

package api

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

// Tokens and policies are documents of the store: a token by the SHA-256 of its
// secret, which is nowhere kept, a policy by its ID.
const (
	tokenKind  = "acl-token"
	policyKind = "acl-policy"
	markKind   = "acl"
	bootMark   = "bootstrap" // the document that says that bootstrapping is over
)

// The policies that are always there, with Consul's IDs and names.
const (
	managementID   = "00000000-0000-0000-0000-000000000001"
	managementName = "global-management"
	readOnlyID     = "00000000-0000-0000-0000-000000000002"
	readOnlyName   = "builtin/global-read-only"
)

const readOnlyRules = `key_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
session_prefix "" { policy = "read" }
agent_prefix "" { policy = "read" }
event_prefix "" { policy = "read" }
operator = "read"
keyring = "read"
acl = "read"
`

// token is the document of a token.
type token struct {
	Accessor    string    `json:"accessor"`
	Description string    `json:"description,omitempty"`
	Policies    []string  `json:"policies,omitempty"` // IDs
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires,omitzero"`

	sum           string // the document's key
	create, index uint64
}

// policy is the document of a policy.
type policy struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Rules       string `json:"rules"`

	create, index uint64
}

// builtin are the policies that nobody can change.
func builtin() []policy {
	return []policy{
		{ID: managementID, Name: managementName, Description: "A policy that grants everything", create: 1, index: 1},
		{ID: readOnlyID, Name: readOnlyName, Description: "A policy that grants to look at everything", Rules: readOnlyRules, create: 1, index: 1},
	}
}

func isBuiltin(id string) bool { return id == managementID || id == readOnlyID }

// sumOf is the key of the token with a secret.
func sumOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func tokenOfDocument(d *state.Document) (token, error) {
	var t token
	if err := json.Unmarshal(d.Value, &t); err != nil {
		return t, fmt.Errorf("the document of a token: %w", err)
	}
	t.sum, t.create, t.index = d.Key, d.CreateIndex, d.ModifyIndex
	return t, nil
}

func policyOfDocument(d *state.Document) (policy, error) {
	var p policy
	if err := json.Unmarshal(d.Value, &p); err != nil {
		return p, fmt.Errorf("the document of policy %s: %w", d.Key, err)
	}
	p.create, p.index = d.CreateIndex, d.ModifyIndex
	return p, nil
}

// tokens lists the tokens, the oldest first. One that can't be read is left out.
func tokens(snap *state.Snapshot) []token {
	documents, _ := snap.Documents(nil, tokenKind)
	var found []token
	for _, d := range documents {
		if t, err := tokenOfDocument(d); err == nil {
			found = append(found, t)
		}
	}
	slices.SortFunc(found, func(a, b token) int { return int(a.create) - int(b.create) })
	return found
}

func policies(snap *state.Snapshot) []policy {
	found := builtin()
	documents, _ := snap.Documents(nil, policyKind)
	for _, d := range documents {
		if p, err := policyOfDocument(d); err == nil {
			found = append(found, p)
		}
	}
	slices.SortStableFunc(found, func(a, b policy) int { return int(a.create) - int(b.create) })
	return found
}

// policyBy finds a policy by ID or, without one, by name.
func policyBy(snap *state.Snapshot, id, name string) (policy, bool) {
	all := policies(snap)
	at := slices.IndexFunc(all, func(p policy) bool { return id != "" && p.ID == id || id == "" && p.Name == name })
	if at < 0 {
		return policy{}, false
	}
	return all[at], true
}

// authorizers remember what tokens may do, for as long as the documents are the
// same ones.
type authorizers struct {
	mu    sync.Mutex
	known map[string]authorized // by the token's sum
}

type authorized struct {
	from    []*state.Document // the token's and its policies'
	expires time.Time
	rights  *acl.Authorizer
}

// maxAuthorizers bounds what is remembered.
const maxAuthorizers = 1024

// of returns what the token with this sum may do at this moment; not ok when
// there is no such token, or its time is over. ws, when given, wakes when
// that changes. A policy that was deleted, or that can't be read, gives
// nothing.
func (a *authorizers) of(snap *state.Snapshot, ws state.WatchSet, sum string, now time.Time) (*acl.Authorizer, bool) {
	document, _ := snap.Document(ws, tokenKind, sum)
	if document == nil {
		return nil, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.known[sum]
	if !ok || !known.current(snap, ws, document) {
		var err error
		if known, err = authorize(snap, ws, document); err != nil {
			return nil, false
		}
		if a.known == nil || len(a.known) >= maxAuthorizers {
			a.known = map[string]authorized{}
		}
		a.known[sum] = known
	}
	if !known.expires.IsZero() && !now.Before(known.expires) {
		return nil, false
	}
	return known.rights, true
}

// current tells whether the documents are those that were looked at.
func (a authorized) current(snap *state.Snapshot, ws state.WatchSet, token *state.Document) bool {
	if a.from[0] != token {
		return false
	}
	for _, d := range a.from[1:] {
		if now, _ := snap.Document(ws, policyKind, d.Key); now != d {
			return false
		}
	}
	return true
}

func authorize(snap *state.Snapshot, ws state.WatchSet, document *state.Document) (authorized, error) {
	t, err := tokenOfDocument(document)
	if err != nil {
		return authorized{}, err
	}
	made := authorized{from: []*state.Document{document}, expires: t.Expires}
	var rules []acl.Rules
	for _, id := range t.Policies {
		if id == managementID {
			made.rights = acl.Everything()
			return made, nil
		}
		text := readOnlyRules
		if id != readOnlyID {
			d, _ := snap.Document(ws, policyKind, id)
			if d == nil {
				continue
			}
			p, err := policyOfDocument(d)
			if err != nil {
				return authorized{}, err
			}
			made.from, text = append(made.from, d), p.Rules
		}
		parsed, err := acl.Parse(text)
		if err != nil {
			return authorized{}, fmt.Errorf("policy %s: %w", id, err)
		}
		rules = append(rules, parsed)
	}
	made.rights = acl.Merge(rules...)
	return made, nil
}

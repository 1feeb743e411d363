package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"holdfast/internal/state"
)

// hiddenSecret is Consul's word for a secret that is not shown. None is, but
// to who makes the token or shows it: the store keeps only its hash.
const hiddenSecret = "<hidden>"

// Consul's bounds of a token's time (acl_token_min_expiration_ttl and _max_).
const (
	minTokenTTL = time.Minute
	maxTokenTTL = 365 * 24 * time.Hour
	maxTokens   = 10_000
)

type policyLink struct {
	ID   string `json:",omitempty"`
	Name string `json:",omitempty"`
}

type tokenJSON struct {
	AccessorID     string
	SecretID       string
	Description    string
	Policies       []policyLink
	Local          bool
	CreateTime     time.Time
	ExpirationTime *time.Time `json:",omitempty"`
	CreateIndex    uint64
	ModifyIndex    uint64
}

// tokenBody is what a client says of a token. What would give other rights
// than policies is refused.
type tokenBody struct {
	AccessorID     string
	SecretID       string
	Description    string
	Policies       []policyLink
	ExpirationTTL  duration
	ExpirationTime *time.Time

	Roles, ServiceIdentities, NodeIdentities, TemplatedPolicies []json.RawMessage

	AuthMethod, Namespace, Partition string
}

func (s *Server) tokenJSON(snap *state.Snapshot, t token, secret string) tokenJSON {
	out := tokenJSON{
		AccessorID: t.Accessor, SecretID: secret, Description: t.Description, Policies: []policyLink{},
		CreateTime: t.Created, CreateIndex: t.create, ModifyIndex: t.index,
	}
	if !t.Expires.IsZero() {
		out.ExpirationTime = &t.Expires
	}
	for _, id := range t.Policies {
		if p, ok := policyBy(snap, id, ""); ok {
			out.Policies = append(out.Policies, policyLink{p.ID, p.Name})
		}
	}
	return out
}

// aclBootstrap makes the first token, which may do everything, once. The mark
// that it was done is written first: of several who ask one gets a token.
func (s *Server) aclBootstrap(c *call) error {
	var body struct{ BootstrapSecret string }
	if data, err := s.body(c, s.config.MaxBody); err != nil {
		return err
	} else if len(data) > 0 {
		if err := decodeStrict(data, &body); err != nil {
			return fault(http.StatusBadRequest, "Request decode failed: %v", err)
		}
	}
	made, secret, err := s.newToken(body.BootstrapSecret)
	if err != nil {
		return err
	}
	made.Description, made.Policies = "Bootstrap Token (Global Management)", []string{managementID}
	mark := state.Document{Kind: markKind, Key: bootMark, Value: []byte(`{"accessor":"` + made.Accessor + `"}`)}
	_, err = s.propose(c, state.PutDocument{Verb: state.CAS, Document: mark})
	if errors.Is(err, state.ErrConflict) {
		return fault(http.StatusForbidden, "Permission denied: ACL bootstrap no longer allowed: ask over the admin socket for another token")
	}
	if err != nil {
		return err
	}
	return s.storeToken(c, made, secret, state.CAS)
}

// newToken makes an accessor, and a secret unless one was given.
func (s *Server) newToken(secret string) (token, string, error) {
	accessor, err := s.newID()
	if err != nil {
		return token{}, "", err
	}
	if secret == "" {
		if secret, err = s.newID(); err != nil {
			return token{}, "", err
		}
	}
	if !isUUID(secret) {
		return token{}, "", fault(http.StatusBadRequest, "Invalid Token: SecretID is not a valid UUID")
	}
	return token{Accessor: accessor, Created: s.now().UTC().Truncate(time.Second), sum: sumOf(secret)}, secret, nil
}

// isUUID tells whether a text has the form of a UUID.
func isUUID(text string) bool {
	for i, c := range text {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", c) {
			return false
		}
	}
	return len(text) == 36
}

func (s *Server) storeToken(c *call, t token, secret string, verb state.Verb) error {
	value, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode token %s: %w", t.Accessor, err)
	}
	document := state.Document{Kind: tokenKind, Key: t.sum, Value: value, ModifyIndex: t.index}
	if _, err := s.propose(c, state.PutDocument{Verb: verb, Document: document}); err != nil {
		return err
	}
	snap := s.state.Snapshot()
	if d, _ := snap.Document(nil, tokenKind, t.sum); d != nil {
		t.create, t.index = d.CreateIndex, d.ModifyIndex
	}
	s.log.Info("access token stored", "accessor", t.Accessor, "description", t.Description, "policies", t.Policies)
	return s.reply(c, s.tokenJSON(snap, t, secret))
}

func (s *Server) aclTokens(c *call) error {
	if err := s.fresh(c); err != nil {
		return err
	}
	snap := s.state.Snapshot()
	wanted := c.args.Get("policy")
	found := []tokenJSON{}
	for _, t := range tokens(snap) {
		if wanted == "" || slices.Contains(t.Policies, wanted) {
			found = append(found, s.tokenJSON(snap, t, hiddenSecret))
		}
	}
	s.describe(c, snap.Index())
	return s.reply(c, found)
}

// findToken looks for the token of an accessor.
func (s *Server) findToken(snap *state.Snapshot, accessor string) (token, error) {
	all := tokens(snap)
	at := slices.IndexFunc(all, func(t token) bool { return t.Accessor == accessor })
	if at < 0 {
		return token{}, fault(http.StatusNotFound, "ACL not found: no token has accessor %.64q", accessor)
	}
	return all[at], nil
}

func (s *Server) aclTokenRead(c *call) error {
	if err := s.fresh(c); err != nil {
		return err
	}
	snap := s.state.Snapshot()
	found, err := s.findToken(snap, c.rest)
	if err != nil {
		return err
	}
	s.describe(c, snap.Index())
	return s.reply(c, s.tokenJSON(snap, found, hiddenSecret))
}

// aclTokenSelf shows the token that the request shows.
func (s *Server) aclTokenSelf(c *call) error {
	secret, _ := tokenOf(c.Request)
	snap := s.state.Snapshot()
	document, _ := snap.Document(nil, tokenKind, sumOf(secret))
	if document == nil || secret == "" {
		return fault(http.StatusForbidden, "ACL not found: the request shows no token")
	}
	found, err := tokenOfDocument(document)
	if err != nil {
		return err
	}
	return s.reply(c, s.tokenJSON(snap, found, secret))
}

func (s *Server) aclTokenCreate(c *call) error {
	var body tokenBody
	if err := s.decode(c, &body); err != nil {
		return err
	}
	s.dropExpired(c)
	if err := s.barrier(c); err != nil { // what other nodes made counts
		return err
	}
	snap := s.state.Snapshot()
	if len(tokens(snap)) >= maxTokens {
		return fault(http.StatusBadRequest, "Invalid Token: there are %d already", maxTokens)
	}
	made, secret, err := s.newToken(body.SecretID)
	if err != nil {
		return err
	}
	if body.AccessorID != "" {
		if !isUUID(body.AccessorID) {
			return fault(http.StatusBadRequest, "Invalid Token: AccessorID is not a valid UUID")
		}
		if _, err := s.findToken(snap, body.AccessorID); err == nil {
			return fault(http.StatusBadRequest, "Invalid Token: AccessorID is already in use")
		}
		made.Accessor = body.AccessorID
	}
	if err := body.fill(snap, &made); err != nil {
		return err
	}
	if made.Expires, err = body.expires(made.Created); err != nil {
		return err
	}
	err = s.storeToken(c, made, secret, state.CAS)
	if errors.Is(err, state.ErrConflict) {
		return fault(http.StatusBadRequest, "Invalid Token: SecretID is already in use")
	}
	return err
}

// fill takes over what can be changed of a token.
func (b *tokenBody) fill(snap *state.Snapshot, t *token) error {
	switch {
	case len(b.Roles)+len(b.ServiceIdentities)+len(b.NodeIdentities)+len(b.TemplatedPolicies) > 0 || b.AuthMethod != "":
		return fault(http.StatusBadRequest, "Invalid Token: roles, identities, templated policies and auth methods are not offered: give Policies")
	case otherThanDefault(b.Namespace) || otherThanDefault(b.Partition):
		return fault(http.StatusBadRequest, "Invalid Token: there is only the default namespace and partition")
	case len(b.Description) > 1024:
		return fault(http.StatusBadRequest, "Invalid Token: the description has %d bytes; at most 1024", len(b.Description))
	case len(b.Policies) > 64:
		return fault(http.StatusBadRequest, "Invalid Token: %d policies; at most 64", len(b.Policies))
	}
	t.Description, t.Policies = b.Description, nil
	for _, link := range b.Policies {
		found, ok := policyBy(snap, link.ID, link.Name)
		if !ok {
			return fault(http.StatusBadRequest, "Invalid Token: no such ACL policy: %.64q", link.ID+link.Name)
		}
		if !slices.Contains(t.Policies, found.ID) {
			t.Policies = append(t.Policies, found.ID)
		}
	}
	return nil
}

// expires is when the token ends; the zero time is never.
func (b *tokenBody) expires(from time.Time) (time.Time, error) {
	at := time.Time{}
	switch {
	case b.ExpirationTTL != 0 && b.ExpirationTime != nil:
		return at, fault(http.StatusBadRequest, "Invalid Token: Expiration TTL and Expiration Time cannot both be set")
	case b.ExpirationTTL != 0:
		at = from.Add(time.Duration(b.ExpirationTTL))
	case b.ExpirationTime != nil && !b.ExpirationTime.IsZero():
		at = b.ExpirationTime.UTC()
	default:
		return at, nil
	}
	if left := at.Sub(from); left < minTokenTTL || left > maxTokenTTL {
		return at, fault(http.StatusBadRequest, "Invalid Token: it would live for %s; want %s to %s", left, minTokenTTL, maxTokenTTL)
	}
	return at, nil
}

// dropExpired removes tokens whose time was over long ago. What can't be
// removed now is removed another time; no token is good after its time.
func (s *Server) dropExpired(c *call) {
	for _, t := range tokens(s.state.Snapshot()) {
		if t.Expires.IsZero() || s.now().Sub(t.Expires) < time.Hour {
			continue
		}
		gone := state.Document{Kind: tokenKind, Key: t.sum, ModifyIndex: t.index}
		if _, err := s.propose(c, state.PutDocument{Verb: state.DeleteCAS, Document: gone}); err != nil {
			s.log.Debug("a token whose time is over was not removed", "accessor", t.Accessor, "error", err)
			return
		}
	}
}

// aclTokenUpdate changes a token, or makes a copy: PUT token/ACCESSOR/clone.
func (s *Server) aclTokenUpdate(c *call) error {
	accessor, clone := strings.CutSuffix(c.rest, "/clone")
	var body tokenBody
	if err := s.decode(c, &body); err != nil {
		return err
	}
	if err := s.barrier(c); err != nil {
		return err
	}
	snap := s.state.Snapshot()
	found, err := s.findToken(snap, accessor)
	if err != nil {
		return err
	}
	if clone {
		made, secret, err := s.newToken("")
		if err != nil {
			return err
		}
		made.Policies, made.Expires, made.Description = found.Policies, found.Expires, body.Description
		if made.Description == "" {
			made.Description = found.Description
		}
		return s.storeToken(c, made, secret, state.CAS)
	}
	if body.AccessorID != "" && body.AccessorID != accessor {
		return fault(http.StatusBadRequest, "Invalid Token: AccessorID of the body is not that of the path")
	}
	if body.SecretID != "" && body.SecretID != hiddenSecret && sumOf(body.SecretID) != found.sum {
		return fault(http.StatusBadRequest, "Invalid Token: the SecretID of a token can't be changed")
	}
	if err := body.fill(snap, &found); err != nil {
		return err
	}
	return s.storeToken(c, found, hiddenSecret, state.CAS)
}

func (s *Server) aclTokenDelete(c *call) error {
	if err := s.barrier(c); err != nil {
		return err
	}
	found, err := s.findToken(s.state.Snapshot(), c.rest)
	if err != nil {
		return err
	}
	if _, err := s.propose(c, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: tokenKind, Key: found.sum}}); err != nil {
		return err
	}
	s.log.Info("access token removed", "accessor", found.Accessor)
	return s.reply(c, true)
}

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"holdfast/internal/peer"
	"holdfast/internal/state"
)

// Paths of joining. The first two are open to who has no certificate: the
// authority's certificate is public, and joining itself asks for a token.
const (
	joinPath       = "/v1/holdfast/join"
	joinCAPath     = "/v1/holdfast/join/ca"
	joinTokensPath = "/v1/holdfast/join-tokens"
)

const (
	joinTokenKind = "join-token" // the document of a token, by the SHA-256 of its secret

	maxJoinTokens   = 1000
	maxJoinNodes    = 10000
	maxJoinUses     = 100000
	maxJoinLifetime = 5 * 365 * 24 * time.Hour
	defaultJoinLife = time.Hour
)

// Joiner certifies nodes. Only an agent that has the cluster's authority has one.
type Joiner interface {
	// Authority is the certificates of the cluster's authorities as
	// peer.AuthorityOf reads them, and the fingerprint of the one that issues.
	Authority() (pem []byte, fingerprint string)
	// Expand makes names of a node set, such as "fbservice[2-4]" or "@service".
	Expand(nodes string) ([]string, error)
	// Allow says why a node that asks from an address is not to be let in; nil
	// when it is.
	Allow(node string, from netip.Addr) error
	// Join certifies the node's key and gives it what it needs. Of its errors
	// peer.ErrRequest is answered with 400, ErrJoinRefused with 403,
	// ErrJoinLater and state.ErrConflict with 409, state.ErrNoLeader with 503, and
	// others with 500.
	Join(ctx context.Context, node string, request []byte) (JoinAnswer, error)
}

// What a Joiner says of a node that it does not certify.
var (
	ErrJoinRefused = errors.New("not let in")
	ErrJoinLater   = errors.New("not now") // something is under way here: the node may ask again
)

// JoinRequest is what a bare node sends.
type JoinRequest struct {
	Node    string `json:"node"`
	Token   string `json:"token"`   // the secret
	Request []byte `json:"request"` // PKCS #10, DER
}

// JoinAnswer is what it gets. It holds the gossip key.
type JoinAnswer struct {
	peer.Joined
	Config []byte `json:"config"` // the cluster file
	Sum    string `json:"sum"`    // its hex SHA-256
}

// JoinToken lets bare nodes in. The secret is not in it: nobody keeps that.
type JoinToken struct {
	ID          string    `json:"id"`
	Description string    `json:"description,omitempty"`
	Nodes       []string  `json:"nodes,omitempty"` // empty: every node of the cluster file
	Uses        int       `json:"uses"`            // that are left; -1: any number
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires"`
	Used        []string  `json:"used,omitempty"` // who came in last with it, at most 16

	sum   string
	index uint64
}

// NewJoinToken asks for a token.
type NewJoinToken struct {
	Description string `json:"description,omitempty"`
	Nodes       string `json:"nodes,omitempty"` // a node set; "": every node of the cluster file
	Uses        int    `json:"uses"`            // 1 unless said; -1: any number
	Lifetime    string `json:"lifetime"`        // such as "24h"; an hour unless said
}

// MadeJoinToken is a token with its secret, which is shown this once. Token is
// what the node is given: the secret and the fingerprint of the authority that
// issues.
type MadeJoinToken struct {
	JoinToken
	Token string `json:"token"`
}

const joinTokenPrefix = "hfjoin"

// FormatJoinToken puts a secret and the authority's fingerprint into one word.
func FormatJoinToken(secret, fingerprint string) string {
	return joinTokenPrefix + "." + secret + "." + fingerprint
}

// ParseJoinToken takes it apart. The error does not hold it.
func ParseJoinToken(text string) (secret, fingerprint string, err error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 3 || parts[0] != joinTokenPrefix || !isHex(parts[1], 64) || !isHex(parts[2], 64) {
		return "", "", errors.New("that is no join token: holdfast join-token create prints one, which begins with hfjoin")
	}
	return parts[1], parts[2], nil
}

func isHex(text string, digits int) bool {
	return len(text) == digits && strings.Trim(text, "0123456789abcdef") == ""
}

// open tells whether a request may be made by who shows nothing.
func (s *Server) open(c *call, found route) bool {
	return s.joiner != nil && c.from == fromTLS && (found.path == joinPath || found.path == joinCAPath) && checkSite(c.Request) == nil
}

func (s *Server) offersJoin() error {
	if s.joiner == nil {
		return fault(http.StatusNotFound, "this node lets nobody in: it does not have the cluster's authority (holdfast agent --join-authority)")
	}
	return nil
}

func (s *Server) joinCA(c *call) error {
	if err := s.offersJoin(); err != nil {
		return err
	}
	pem, _ := s.joiner.Authority()
	c.w.Header().Set("Content-Type", "application/x-pem-file")
	_, err := c.w.Write(pem)
	return err
}

// join lets a bare node in: the token must be known, be for this node, and have
// a use left; the node must ask from an address of its own.
func (s *Server) joinNode(c *call) error {
	if err := s.offersJoin(); err != nil {
		return err
	}
	var request JoinRequest
	if err := s.decode(c, &request); err != nil {
		return err
	}
	if err := s.barrier(c); err != nil { // what others used counts
		return joinFault(err)
	}
	found, why := s.joinToken(request)
	if why == "" {
		from, err := netip.ParseAddrPort(c.RemoteAddr)
		if err != nil {
			return err
		}
		if err := s.joiner.Allow(request.Node, from.Addr().Unmap()); err != nil {
			why = err.Error()
		}
	}
	if why != "" {
		return s.refuseJoin(c, request.Node, why)
	}
	answer, err := s.joiner.Join(c.Context(), request.Node, request.Request)
	if errors.Is(err, ErrJoinRefused) {
		return s.refuseJoin(c, request.Node, err.Error())
	}
	if err != nil { // and no use is taken
		return joinFault(err)
	}
	// What was signed is sent by who has the use, and nobody else.
	if err := s.useJoinToken(c, found, request.Node); err != nil {
		return joinFault(err)
	}
	s.log.Info("a node was let in", "node", request.Node, "from", c.RemoteAddr, "token", found.ID)
	return s.reply(c, answer)
}

func (s *Server) refuseJoin(c *call, node, why string) error {
	s.log.Warn("a node was not let in", "node", node, "from", c.RemoteAddr, "reason", why)
	return s.refuse(&refusal{http.StatusForbidden, "join", "Permission denied: " + why})
}

// joinFault gives errors of joining the statuses that statusOf has no reason to
// give: no client of Consul's asks here, so one without leader is a 503.
func joinFault(err error) error {
	switch {
	case errors.Is(err, state.ErrNoLeader):
		return errors.Join(fault(http.StatusServiceUnavailable, "%s", withoutLeader(err)), err)
	case errors.Is(err, ErrJoinLater):
		return fault(http.StatusConflict, "%s", err)
	case errors.Is(err, peer.ErrRequest):
		return fault(http.StatusBadRequest, "%s", err)
	}
	return err
}

// joinToken finds the token, or says why it is none for this node. An unknown
// one and one that is used up read the same: whoever guesses learns nothing.
func (s *Server) joinToken(request JoinRequest) (found JoinToken, why string) {
	const unknown = "the token is unknown, used up or over"
	document, _ := s.state.Snapshot().Document(nil, joinTokenKind, sumOf(request.Token))
	if document == nil {
		return found, unknown
	}
	found, err := joinTokenOf(document)
	switch {
	case err != nil, found.Uses == 0, !s.now().Before(found.Expires):
		return found, unknown
	case len(found.Nodes) > 0 && !slices.Contains(found.Nodes, request.Node):
		return found, fmt.Sprintf("the token is not for node %.64q", request.Node)
	}
	return found, ""
}

func joinTokenOf(d *state.Document) (JoinToken, error) {
	var t JoinToken
	if err := json.Unmarshal(d.Value, &t); err != nil {
		return t, fmt.Errorf("the document of a join token: %w", err)
	}
	t.sum, t.index = d.Key, d.ModifyIndex
	return t, nil
}

// useJoinToken takes a use away. Of two nodes that come at the same time with
// the last one, exactly one gets it.
func (s *Server) useJoinToken(c *call, t JoinToken, node string) error {
	verb := state.CAS
	if t.Uses > 0 {
		t.Uses--
	}
	t.Used = append(t.Used, node)
	t.Used = t.Used[max(0, len(t.Used)-16):]
	value, err := json.Marshal(t)
	if err != nil {
		return err
	}
	_, err = s.propose(c, state.PutDocument{Verb: verb, Document: state.Document{Kind: joinTokenKind, Key: t.sum, Value: value, ModifyIndex: t.index}})
	if errors.Is(err, state.ErrConflict) {
		return fault(http.StatusConflict, "the token was used by another at the same time; try again")
	}
	return err
}

func (s *Server) joinTokens(c *call) error {
	documents, _ := s.state.Snapshot().Documents(nil, joinTokenKind)
	all := []JoinToken{}
	for _, d := range documents {
		if t, err := joinTokenOf(d); err == nil {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b JoinToken) int { return a.Created.Compare(b.Created) })
	return s.reply(c, all)
}

func (s *Server) joinTokenCreate(c *call) error {
	if err := s.offersJoin(); err != nil {
		return err
	}
	var asked NewJoinToken
	if err := s.decode(c, &asked); err != nil {
		return err
	}
	made, err := s.newJoinToken(asked)
	if err != nil {
		return err
	}
	if err := s.dropOldJoinTokens(c); err != nil {
		return err
	}
	random := make([]byte, 48)
	if _, err := s.random(random); err != nil {
		return err
	}
	secret := fmt.Sprintf("%x", random[:32])
	made.ID = fmt.Sprintf("%x", random[32:40])
	value, err := json.Marshal(made)
	if err != nil {
		return err
	}
	if _, err := s.propose(c, state.PutDocument{Verb: state.CAS, Document: state.Document{Kind: joinTokenKind, Key: sumOf(secret), Value: value}}); err != nil {
		return err
	}
	_, fingerprint := s.joiner.Authority()
	return s.reply(c, MadeJoinToken{JoinToken: made, Token: FormatJoinToken(secret, fingerprint)})
}

func (s *Server) newJoinToken(asked NewJoinToken) (JoinToken, error) {
	made := JoinToken{Description: asked.Description, Uses: asked.Uses, Created: s.now().UTC().Truncate(time.Second)}
	if made.Uses == 0 {
		made.Uses = 1
	}
	lifetime := defaultJoinLife
	if asked.Lifetime != "" {
		var err error
		if lifetime, err = time.ParseDuration(asked.Lifetime); err != nil {
			return made, fault(http.StatusBadRequest, "lifetime %q: want a time such as 24h", asked.Lifetime)
		}
	}
	switch {
	case lifetime <= 0 || lifetime > maxJoinLifetime:
		return made, fault(http.StatusBadRequest, "lifetime %s: must be more than 0 and at most %s", lifetime, maxJoinLifetime)
	case made.Uses < -1 || made.Uses > maxJoinUses:
		return made, fault(http.StatusBadRequest, "uses %d: must be 1 to %d, or -1 for any number", asked.Uses, maxJoinUses)
	case len(asked.Description) > 1024:
		return made, fault(http.StatusBadRequest, "the description has %d bytes; at most 1024", len(asked.Description))
	}
	made.Expires = made.Created.Add(lifetime)
	if asked.Nodes == "" {
		return made, nil
	}
	nodes, err := s.joiner.Expand(asked.Nodes)
	if err != nil {
		return made, fault(http.StatusBadRequest, "nodes: %s", err)
	}
	if len(nodes) > maxJoinNodes {
		return made, fault(http.StatusBadRequest, "nodes: %d; at most %d", len(nodes), maxJoinNodes)
	}
	made.Nodes = nodes
	return made, nil
}

// dropOldJoinTokens forgets those that are of no use any more, and refuses when
// there are too many others.
func (s *Server) dropOldJoinTokens(c *call) error {
	documents, _ := s.state.Snapshot().Documents(nil, joinTokenKind)
	left := 0
	for _, d := range documents {
		t, err := joinTokenOf(d)
		if err == nil && t.Uses != 0 && s.now().Before(t.Expires) {
			left++
			continue
		}
		if _, err := s.propose(c, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: joinTokenKind, Key: d.Key}}); err != nil {
			return err
		}
	}
	if left >= maxJoinTokens {
		return fault(http.StatusBadRequest, "there are %d join tokens already", left)
	}
	return nil
}

func (s *Server) joinTokenDelete(c *call) error {
	documents, _ := s.state.Snapshot().Documents(nil, joinTokenKind)
	for _, d := range documents {
		if t, err := joinTokenOf(d); err != nil || t.ID != c.rest {
			continue
		}
		if _, err := s.propose(c, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: joinTokenKind, Key: d.Key}}); err != nil {
			return err
		}
		return s.reply(c, true)
	}
	return fault(http.StatusNotFound, "there is no join token %.64q", c.rest)
}

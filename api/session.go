package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"holdfast/api/acl"
	"holdfast/internal/state"
)

// Consul's bounds and defaults of sessions (agent/structs, agent/session_endpoint.go).
const (
	defaultSessionTTLMin = 10 * time.Second
	maxSessionTTL        = 24 * time.Hour
	defaultLockDelay     = 15 * time.Second
	lockDelayThreshold   = 1000 // a bare number below it is seconds, else nanoseconds
)

// sessionBody is the body of /v1/session/create.
type sessionBody struct {
	Name          string
	Node          string
	Checks        []string // Consul's old name of NodeChecks
	NodeChecks    []string
	ServiceChecks []serviceCheckJSON
	LockDelay     lockDelay
	Behavior      string
	TTL           string
	Namespace     string
	Partition     string
}

// serviceCheckJSON names a check of a service.
type serviceCheckJSON struct {
	ID        string
	Namespace string `json:",omitempty"`
}

// UnmarshalJSON takes Consul's snake_case spellings too.
func (b *sessionBody) UnmarshalJSON(data []byte) error {
	type plain sessionBody
	folded, err := foldKeys(data)
	if err != nil {
		return err
	}
	return json.Unmarshal(folded, (*plain)(b))
}

// lockDelay is Consul's: a text, a number of nanoseconds, or of seconds when it
// is below a thousand.
type lockDelay struct {
	given bool
	delay time.Duration
}

func (l *lockDelay) UnmarshalJSON(data []byte) error {
	if string(data) == "null" || string(data) == `""` {
		return nil
	}
	var d duration
	if err := d.UnmarshalJSON(data); err != nil {
		return err
	}
	l.given, l.delay = true, time.Duration(d)
	if l.delay > 0 && l.delay < lockDelayThreshold {
		l.delay *= time.Duration(time.Second)
	}
	return nil
}

type sessionJSON struct {
	ID            string
	Name          string
	Node          string
	LockDelay     time.Duration
	Behavior      string
	TTL           string
	NodeChecks    []string
	ServiceChecks []serviceCheckJSON
	CreateIndex   uint64
	ModifyIndex   uint64
}

func sessionOf(s *state.Session) sessionJSON {
	found := sessionJSON{
		ID: s.ID, Name: s.Name, Node: s.Node, LockDelay: s.LockDelay, Behavior: string(s.Behavior),
		NodeChecks: list(s.NodeChecks), ServiceChecks: []serviceCheckJSON{},
		CreateIndex: s.CreateIndex, ModifyIndex: s.ModifyIndex,
	}
	if s.TTL > 0 {
		found.TTL = shortDuration(s.TTL)
	}
	for _, id := range s.ServiceChecks {
		found.ServiceChecks = append(found.ServiceChecks, serviceCheckJSON{ID: id})
	}
	return found
}

// shortDuration is how Go writes a duration, without the zeros at its end:
// "10s", "1m", "1h", as clients wrote it.
func shortDuration(d time.Duration) string {
	text := d.String()
	text = strings.TrimSuffix(text, "m0s") + map[bool]string{true: "m"}[strings.HasSuffix(text, "m0s")]
	return strings.TrimSuffix(text, "h0m") + map[bool]string{true: "h"}[strings.HasSuffix(text, "h0m")]
}

// session translates the body; the texts of its errors are Consul's.
func (s *Server) session(body sessionBody) (state.Session, error) {
	made := state.Session{
		Name: body.Name, Node: body.Node, NodeChecks: body.NodeChecks,
		Behavior: state.Behavior(body.Behavior), LockDelay: defaultLockDelay,
	}
	if otherThanDefault(body.Namespace) || otherThanDefault(body.Partition) {
		return made, fault(http.StatusBadRequest, "Invalid session: there is only the default namespace and partition")
	}
	if made.Node == "" {
		made.Node = s.config.Node
	}
	if body.Checks != nil {
		made.NodeChecks = append(made.NodeChecks, body.Checks...)
	}
	if body.NodeChecks == nil && body.Checks == nil {
		made.NodeChecks = []string{state.SerfHealth}
	}
	for _, c := range body.ServiceChecks {
		made.ServiceChecks = append(made.ServiceChecks, c.ID)
	}
	switch made.Behavior {
	case "", state.BehaviorRelease, state.BehaviorDelete:
	default:
		return made, fault(http.StatusInternalServerError, "Invalid Behavior setting '%s'", body.Behavior)
	}
	if body.LockDelay.given {
		made.LockDelay = body.LockDelay.delay
	}
	if made.LockDelay < 0 || made.LockDelay > state.MaxLockDelay {
		return made, fault(http.StatusInternalServerError, "Invalid LockDelay '%v', must be between [0s=%v]", made.LockDelay, state.MaxLockDelay)
	}
	if body.TTL == "" {
		return made, nil
	}
	ttl, err := time.ParseDuration(body.TTL)
	if err != nil {
		return made, fault(http.StatusInternalServerError, "Session TTL '%s' invalid: %v", body.TTL, err)
	}
	if ttl != 0 && (ttl < s.config.SessionTTLMin || ttl > maxSessionTTL) {
		return made, fault(http.StatusInternalServerError, "Invalid Session TTL '%d', must be between [%v=%v]", ttl, s.config.SessionTTLMin, maxSessionTTL)
	}
	made.TTL = ttl
	return made, nil
}

func (s *Server) sessionCreate(c *call) error {
	var body sessionBody
	if data, err := s.body(c, s.config.MaxBody); err != nil {
		return err
	} else if len(data) > 0 { // no body is a session with the defaults
		if err := decodeStrict(data, &body); err != nil {
			return fault(http.StatusBadRequest, "Request decode failed: %v", err)
		}
	}
	made, err := s.session(body)
	if err != nil {
		return err
	}
	if err := s.permit(c, acl.Session, made.Node, acl.Write); err != nil {
		return err
	}
	if made.ID, err = s.newID(); err != nil {
		return err
	}
	if _, err := s.propose(c, state.CreateSession{Session: made}); err != nil {
		return sessionFault(err)
	}
	return s.reply(c, map[string]string{"ID": made.ID})
}

// sessionFault gives a refusal Consul's status: its clients take the text of a
// 500 apart, and retry.
func sessionFault(err error) error {
	if !errors.Is(err, state.ErrInvalid) {
		return err
	}
	text := err.Error()
	if at := strings.Index(text, state.ErrInvalid.Error()+": "); at >= 0 {
		text = text[at+len(state.ErrInvalid.Error()+": "):]
	}
	return &statusError{http.StatusInternalServerError, text}
}

func (s *Server) sessionDestroy(c *call) error {
	id, err := c.name("session")
	if err != nil {
		return err
	}
	if _, err := s.propose(c, state.DestroySession{ID: id}); err != nil {
		return err
	}
	return s.reply(c, true)
}

// sessionRenew answers with the session, or 404, which is how a client learns
// that it lost everything.
func (s *Server) sessionRenew(c *call) error {
	id, err := c.name("session")
	if err != nil {
		return err
	}
	if _, err := s.propose(c, state.RenewSession{ID: id}); err != nil && !errors.Is(err, state.ErrNotFound) {
		return err
	}
	found, index := s.state.Snapshot().Session(nil, id)
	if found == nil {
		return fault(http.StatusNotFound, "Session id '%s' not found", id)
	}
	s.describe(c, index)
	return s.reply(c, []sessionJSON{sessionOf(found)})
}

func (s *Server) sessionInfo(c *call) error {
	id, err := c.name("session")
	if err != nil {
		return err
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		found, index := snap.Session(ws, id)
		if found == nil || !c.seesSession(found) {
			return answer{value: []sessionJSON{}, index: index}
		}
		return answer{value: []sessionJSON{sessionOf(found)}, index: index}
	})
}

func (s *Server) sessionNode(c *call) error {
	node, err := c.name("node name")
	if err != nil {
		return err
	}
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		found, index := snap.NodeSessions(ws, node)
		return answer{value: sessionsOf(visible(found, c.seesSession)), index: index}
	})
}

func (s *Server) sessionList(c *call) error {
	return s.query(c, func(snap *state.Snapshot, ws state.WatchSet) answer {
		found, index := snap.Sessions(ws)
		return answer{value: sessionsOf(visible(found, c.seesSession)), index: index}
	})
}

func sessionsOf(all []*state.Session) []sessionJSON {
	found := make([]sessionJSON, 0, len(all))
	for _, s := range all {
		found = append(found, sessionOf(s))
	}
	return slices.Clip(found)
}

// newID makes a random UUID (RFC 9562 version 4).
func (s *Server) newID() (string, error) {
	var b [16]byte
	if _, err := s.random(b[:]); err != nil {
		return "", fmt.Errorf("make an ID: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}

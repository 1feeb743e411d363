package discovery

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/serf/serf"

	"holdfast/internal/state"
)

const (
	// eventsKept is how many events a node remembers, as Consul's.
	eventsKept = 256
	// maxEvent bounds an event in the gossip: it must fit, with others, into
	// a datagram.
	maxEvent = 1000
	// eventLife is for how long after it was fired an event is news: a node
	// that comes back must not act on what the others did an hour ago.
	eventLife   = 5 * time.Minute
	eventPrefix = "holdfast:"
)

// eventWire is an event in the gossip.
type eventWire struct {
	ID      string    `json:"i"`
	Payload []byte    `json:"p,omitempty"`
	Node    string    `json:"n,omitempty"`
	Service string    `json:"s,omitempty"`
	Tag     string    `json:"t,omitempty"`
	Fired   time.Time `json:"f"`
}

// events are the latest events that concern this node.
type events struct {
	mu      sync.Mutex
	list    []state.UserEvent // the latest at the end
	changed chan struct{}
}

func newEvents() *events { return &events{changed: make(chan struct{})} }

func (e *events) add(event state.UserEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if slices.ContainsFunc(e.list, func(had state.UserEvent) bool { return had.ID == event.ID }) {
		return
	}
	if len(e.list) == eventsKept {
		e.list = slices.Delete(e.list, 0, 1)
	}
	e.list = append(e.list, event)
	close(e.changed)
	e.changed = make(chan struct{})
}

// Events returns the latest events that concern this node, the newest at the
// end, and a channel that is closed at the next one.
func (a *Agent) Events() ([]state.UserEvent, <-chan struct{}) {
	a.events.mu.Lock()
	defer a.events.mu.Unlock()
	return slices.Clone(a.events.list), a.events.changed
}

// FireEvent gives an event to the gossip and returns it with its ID. It needs
// no leader. An error that wraps state.ErrInvalid says what is wrong with it.
func (a *Agent) FireEvent(ctx context.Context, event state.UserEvent) (state.UserEvent, error) {
	if err := checkEvent(event); err != nil {
		return event, fmt.Errorf("discovery: event %.64q: %w: %w", event.Name, state.ErrInvalid, err)
	}
	event.ID = newEventID()
	payload, err := json.Marshal(eventWire{event.ID, event.Payload, event.NodeFilter, event.ServiceFilter, event.TagFilter, time.Now().UTC()})
	if err != nil {
		return event, fmt.Errorf("discovery: event %s: %w", event.Name, err)
	}
	if size := len(event.Name) + len(payload); size > maxEvent {
		return event, fmt.Errorf("discovery: event %.64q: %w: it takes %d bytes in the gossip; at most %d: put the payload into a key and name the key", event.Name, state.ErrInvalid, size, maxEvent)
	}
	_, err = withGossip(ctx, a, func(g *gossip) (int, error) { return 0, g.serf.UserEvent(eventPrefix+event.Name, payload, false) })
	if err != nil {
		return event, fmt.Errorf("discovery: event %s: %w", event.Name, err)
	}
	return event, nil
}

func checkEvent(e state.UserEvent) error {
	if e.Name == "" || len(e.Name) > 128 {
		return fmt.Errorf("the name has %d bytes; want 1 to 128", len(e.Name))
	}
	if e.TagFilter != "" && e.ServiceFilter == "" {
		return fmt.Errorf("a tag filter needs a service filter")
	}
	for _, filter := range []string{e.NodeFilter, e.ServiceFilter, e.TagFilter} {
		if _, err := regexp.Compile(filter); err != nil {
			return fmt.Errorf("filter: %w", err)
		}
	}
	return nil
}

// newEventID makes a random UUID (RFC 9562 version 4).
func newEventID() string {
	var b [16]byte
	rand.Read(b[:]) // ends the program rather than fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// decodeEvent reads what the gossip brought; not ok for what is not an event
// of ours.
func decodeEvent(name string, payload []byte, ltime uint64) (event state.UserEvent, fired time.Time, ok bool) {
	if len(name) <= len(eventPrefix) || name[:len(eventPrefix)] != eventPrefix {
		return event, fired, false
	}
	var wire eventWire
	if err := json.Unmarshal(payload, &wire); err != nil || !validUUID(wire.ID) {
		return event, fired, false
	}
	event = state.UserEvent{
		ID: wire.ID, Name: name[len(eventPrefix):], Payload: wire.Payload,
		NodeFilter: wire.Node, ServiceFilter: wire.Service, TagFilter: wire.Tag, LTime: ltime,
	}
	return event, wire.Fired, checkEvent(event) == nil
}

// concerns tells whether an event's filters match a node with its services.
func concerns(e state.UserEvent, node string, services []state.Service) bool {
	matches := func(filter, text string) bool {
		is, err := regexp.MatchString(filter, text)
		return err == nil && is
	}
	if !matches(e.NodeFilter, node) {
		return false
	}
	return e.ServiceFilter == "" || slices.ContainsFunc(services, func(svc state.Service) bool {
		return matches(e.ServiceFilter, svc.Name) &&
			(e.TagFilter == "" || slices.ContainsFunc(svc.Tags, func(tag string) bool { return matches(e.TagFilter, tag) }))
	})
}

// heard takes an event of Serf's. Those of the members say only that something
// changed, and are for who reads the members.
func (a *Agent) heard(e serf.Event) {
	user, ok := e.(serf.UserEvent)
	if !ok {
		return
	}
	event, fired, ok := decodeEvent(user.Name, user.Payload, uint64(user.LTime))
	switch {
	case !ok:
		a.countRefusal(refusedMalformed)
		a.log.Debug("an event was not understood", "name", user.Name)
	case time.Since(fired).Abs() > eventLife:
		a.log.Info("an event is not told any more: it was fired long ago", "name", event.Name, "fired", fired)
	case concerns(event, a.config.Node, a.LocalServices()):
		a.events.add(event)
		a.log.Info("event", "name", event.Name, "id", event.ID)
	}
}

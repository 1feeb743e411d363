package lb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"holdfast/internal/state"
)

// Documents of ours in the store, by node.
const (
	kindDrain  = "lb/drain"  // a Drain
	kindPeople = "lb/people" // who is logged in on a node that is drained: People
)

// Bounds of what is said about a drain.
const (
	maxMessage  = 500 // bytes
	maxDeadline = 30 * 24 * time.Hour
)

// Drain is an order: a node gets nobody new until it is undrained.
type Drain struct {
	Since    time.Time `json:"since"`
	Deadline time.Time `json:"deadline,omitzero"` // told to people; nobody is thrown out
	Message  string    `json:"message,omitempty"`
}

// ErrUnknown: no service has such a real server.
var ErrUnknown = errors.New("no service of this cluster has that real server")

// ErrRefused: a drain would leave too little.
var ErrRefused = errors.New("refused")

// ErrNoStore: this unit runs without the cluster's store, and can't say
// anything to other directors.
var ErrNoStore = errors.New("this unit has no store; ask an agent that runs whole (holdfast agent)")

// drains reads the orders of the store.
func drains(snap *state.Snapshot) map[string]Drain {
	docs, _ := snap.Documents(nil, kindDrain)
	all := map[string]Drain{}
	for _, d := range docs {
		var order Drain
		if json.Unmarshal(d.Value, &order) == nil {
			all[d.Key] = order
		}
	}
	return all
}

// StartDrain orders a drain on all directors, and returns when the order is
// in the store. Unless forced it is refused (ErrRefused) when a service would be
// left without its quorum.
func (s *Service) StartDrain(ctx context.Context, node string, order Drain, force bool) error {
	if s.deps.Store == nil {
		return ErrNoStore
	}
	settings := s.current()
	if err := order.valid(); err != nil {
		return err
	}
	others := drains(s.deps.Store.Snapshot())
	if _, drained := others[node]; drained && order.Deadline.IsZero() && order.Message == "" {
		return nil // who asks again changes nothing
	}
	if err := drainable(settings, node, others); errors.Is(err, ErrUnknown) || err != nil && !force {
		return err
	}
	value, err := json.Marshal(order)
	if err != nil {
		return err
	}
	return s.propose(ctx, state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindDrain, Key: node, Value: value}})
}

// EndDrain ends it. A node that is not drained is no error.
func (s *Service) EndDrain(ctx context.Context, node string) error {
	if s.deps.Store == nil {
		return ErrNoStore
	}
	if d, _ := s.deps.Store.Snapshot().Document(nil, kindDrain, node); d == nil {
		return nil
	}
	return s.propose(ctx, state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: kindDrain, Key: node}})
}

func (s *Service) propose(ctx context.Context, c state.Command) error {
	_, err := s.deps.Proposer.Propose(ctx, c)
	return err
}

func (d Drain) valid() error {
	switch {
	case len(d.Message) > maxMessage:
		return fmt.Errorf("%w: a message of %d bytes; %d are right", ErrRefused, len(d.Message), maxMessage)
	case strings.ContainsFunc(d.Message, unicode.IsControl):
		return fmt.Errorf("%w: a message with control characters", ErrRefused)
	case !d.Deadline.IsZero() && d.Deadline.Sub(d.Since) > maxDeadline:
		return fmt.Errorf("%w: a deadline in more than %v", ErrRefused, maxDeadline)
	}
	return nil
}

// drainable tells whether every service keeps its quorum without a node.
func drainable(settings Settings, node string, drained map[string]Drain) error {
	known := false
	for _, v := range settings.Services {
		left, serves := 0, false
		for _, r := range v.Servers {
			_, gone := drained[r.Node]
			switch {
			case r.Node == node:
				serves = true
			case !gone:
				left += r.Weight
			}
		}
		known = known || serves
		if serves && left < v.Quorum {
			return fmt.Errorf("%w: without %s the service %s has the weight %d, and %d is its quorum; --force does it all the same", ErrRefused, node, v.Name, left, v.Quorum)
		}
	}
	if !known {
		return fmt.Errorf("%s: %w", node, ErrUnknown)
	}
	return nil
}

// follow tells the planner what the store and the gossip say, until ctx ends.
func (s *Service) follow(ctx context.Context) {
	if s.deps.Store == nil {
		return
	}
	for {
		changed := s.deps.Store.Changed()
		snap := s.deps.Store.Snapshot()
		orders := drains(snap)
		var nodes, alive []string
		for node := range orders {
			nodes = append(nodes, node)
		}
		for _, m := range snap.Members() {
			if m.Liveness == state.Alive {
				alive = append(alive, m.Name)
			}
		}
		s.learn(nodes, alive)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// learn tells the planner what is new of it.
func (s *Service) learn(drained, alive []string) {
	slices.Sort(drained)
	slices.Sort(alive)
	s.mu.Lock()
	same := slices.Equal(s.drained, drained) && slices.Equal(s.alive, alive)
	s.drained, s.alive = drained, alive
	s.mu.Unlock()
	if same {
		return
	}
	s.log.Debug("store and gossip", "drained", drained, "alive", alive)
	s.Drain(drained)
	s.Alive(alive)
}

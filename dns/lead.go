package dns

import (
	"context"
	"time"

	"holdfast/internal/state"
)

// leadEvery is how often the leader looks whether something is for it to do.
const leadEvery = time.Second

// lead does what one node of the cluster must, while this one leads the store:
// it notes there which cluster file the zones are made from, which moves their
// serials on, and tells secondaries of new serials. It returns when ctx ends.
func (s *Server) lead(ctx context.Context) error {
	if s.leads == nil || s.proposer == nil {
		return nil
	}
	ticker := time.NewTicker(leadEvery)
	defer ticker.Stop()
	for {
		if s.leads() {
			s.noteFile(ctx)
			s.notifySecondaries(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// noteFile puts the hash of this node's cluster file into the store, unless it
// is there. Which index that gets is the zones' new serial.
func (s *Server) noteFile(ctx context.Context) {
	s.mu.Lock()
	sum := s.compiler.file.Sum
	s.mu.Unlock()
	snap := s.state.Snapshot()
	if d, _ := snap.Document(nil, kindFile, "sum"); d != nil && string(d.Value) == sum {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	_, err := s.proposer.Propose(ctx, state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindFile, Key: "sum", Value: []byte(sum)}})
	if err != nil {
		s.log.Debug("the serials of the zones could not be moved on; trying again", "error", err)
	}
}

// proposeTimeout bounds a write to the store: elections take about a second.
const proposeTimeout = 5 * time.Second

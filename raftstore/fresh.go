package raftstore

import (
	"context"
	"time"
)

// keepFresh notes how fresh this server's state is, leader or not, until ctx
// ends: as of the begin of the last read barrier that succeeded. A heartbeat
// of the leader would not say so much: it comes before the log does after a
// start, an election or a cut cable, and goes on while the log's disk hangs;
// what the state lacks would be denied to those who ask.
func (e *engine) keepFresh(ctx context.Context) {
	s := e.store
	for {
		changed := s.LeaderChanged()
		if _, _, known := s.Leader(); !known {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		asked := time.Now()
		if s.ReadBarrier(ctx) == nil {
			s.state.Touch(asked)
		}
		if !sleep(ctx, s.times.fresh) {
			return
		}
	}
}

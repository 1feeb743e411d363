package main

import (
	"context"
	"fmt"
	"time"

	"holdfast/internal/health"
)

const (
	conditionExpiry = "pki.expires"
	expiryNotice    = 30 * 24 * time.Hour
	expiryInterval  = time.Hour
)

// watchExpiry raises a condition in the last month of this node's certificate,
// until ctx ends. The nodes' certificates are mostly issued on one day, so
// they end on one day too, and no node trusts another any more.
func watchExpiry(ctx context.Context, board *health.Board, expires time.Time) error {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		if left := time.Until(expires); left < expiryNotice {
			severity, when := health.Warning, fmt.Sprintf("%d days left", int(left.Hours()/24))
			if left < 0 {
				severity, when = health.Error, "over"
			}
			board.Raise(conditionExpiry, severity, fmt.Sprintf(
				"the validity of this node's certificate ends on %s (%s): issue it again (holdfast pki issue), copy it here and restart the agent",
				expires.Format(time.DateOnly), when))
		} else {
			board.Clear(conditionExpiry)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/peer"
)

const (
	conditionExpiry = "pki.expires"
	expiryNotice    = 30 * 24 * time.Hour
	expiryInterval  = time.Minute

	conditionReload = "pki.reload"
)

// renew takes up a certificate that was issued anew, and tells when the one in
// force ends.
func renew(trust *peer.Trust, board *health.Board, log *slog.Logger) time.Time {
	changed, err := trust.Reload()
	switch {
	case err != nil:
		board.Raise(conditionReload, health.Warning, err.Error()+"; the one before stays in force")
	case changed:
		log.Info("a new certificate is in force", "expires", trust.Expires())
		fallthrough
	default:
		board.Clear(conditionReload)
	}
	return trust.Expires()
}

// watchExpiry looks every minute when this node's certificate ends, and raises a
// condition in the last month of it, until ctx ends. The nodes' certificates are mostly issued on one day, so
// they end on one day too, and no node trusts another any more.
func watchExpiry(ctx context.Context, board *health.Board, ends func() time.Time) error {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		expires := ends()
		if left := time.Until(expires); left < expiryNotice {
			severity, when := health.Warning, fmt.Sprintf("%d days left", int(left.Hours()/24))
			if left < 0 {
				severity, when = health.Error, "over"
			}
			board.Raise(conditionExpiry, severity, fmt.Sprintf(
				"the validity of this node's certificate ends on %s (%s): issue it again (holdfast pki issue), copy it here: it is in force within a minute",
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

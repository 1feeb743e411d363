package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/health"
	"holdfast/internal/peer"
)

const (
	conditionExpiry    = "pki.expires"
	conditionAuthority = "pki.authority-expires"
	conditionReload    = "pki.reload"

	expiryNotice   = 30 * 24 * time.Hour
	expiryInterval = time.Minute
)

// certificates takes up what was issued anew, and tells when what is in force
// ends.
type certificates struct {
	trust  *peer.Trust
	board  *health.Board
	log    *slog.Logger
	closed prometheus.Counter
	now    func() time.Time
	poke   chan struct{} // look at once
}

func newCertificates(trust *peer.Trust, board *health.Board, log *slog.Logger, r prometheus.Registerer) (*certificates, error) {
	c := &certificates{
		trust: trust, board: board, log: log, now: time.Now, poke: make(chan struct{}, 1),
		closed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_pki_closed_connections_total",
			Help: "Connections closed because the authority of the other end's certificate was dropped.",
		}),
	}
	return c, r.Register(c.closed)
}

// look takes up what is there now.
func (c *certificates) look() {
	r, err := c.trust.Reload()
	if err != nil {
		c.board.Raise(conditionReload, health.Warning, err.Error()+"; what was there before stays in force")
	} else {
		c.board.Clear(conditionReload)
	}
	c.closed.Add(float64(r.Closed))
	if r.Certificate {
		_, issuer := c.trust.Authorities()
		c.log.Info("a new certificate is in force", "expires", c.trust.Expires(), "authority", issuer)
	}
	if len(r.Added) > 0 {
		c.log.Info("another authority is trusted from now on", "authority", strings.Join(r.Added, ", "))
	}
	if len(r.Dropped) > 0 {
		c.log.Warn("an authority is not trusted any more", "authority", strings.Join(r.Dropped, ", "), "connections_closed", r.Closed)
	}
	c.judge(conditionExpiry, "this node's certificate", "issue it again (holdfast pki issue), copy it here: it is in force within a minute", c.trust.Expires())
	c.judge(conditionAuthority, "the cluster's authority", "no certificate of it lasts longer: go over to a new one (holdfast pki rotate begin)", c.trust.AuthorityExpires())
}

// judge raises a condition in the last month of what ends at a time. The nodes'
// certificates are mostly issued on one day, so they end on one day too, and no
// node trusts another any more.
func (c *certificates) judge(condition, what, help string, ends time.Time) {
	left := ends.Sub(c.now())
	if left >= expiryNotice {
		c.board.Clear(condition)
		return
	}
	severity, when := health.Warning, fmt.Sprintf("%d days left", int(left.Hours()/24))
	if left < 0 {
		severity, when = health.Error, "over"
	}
	c.board.Raise(condition, severity, fmt.Sprintf("the validity of %s ends on %s (%s): %s", what, ends.Format(time.DateOnly), when, help))
}

// watch looks every minute, and when it is told to, until ctx ends.
func (c *certificates) watch(ctx context.Context) error {
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		c.look()
		select {
		case <-tick.C:
		case <-c.poke:
		case <-ctx.Done():
			return nil
		}
	}
}

// soon has watch look at once. A nil receiver has no certificates.
func (c *certificates) soon() {
	if c == nil {
		return
	}
	select {
	case c.poke <- struct{}{}:
	default: // it is about to
	}
}

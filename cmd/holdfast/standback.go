package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"holdfast/api"
	"holdfast/internal/state"
	"holdfast/vrrp"
)

// standBackAgain is how soon virtual routers are spoken to again that did not
// answer: they may not have begun.
const standBackAgain = time.Second

// standBack keeps the virtual addresses away from a node that is drained, for
// as long as the store says so: also after a reboot, which forgets what the
// routers were told. Somebody else must have them: an address that nobody takes
// stays, and one that an admin has held here on purpose, too. It is a run.Task.
type standBack struct {
	node    string
	state   state.Reader
	routers interface {
		Status(context.Context) ([]vrrp.RouterReport, error)
		Yield(ctx context.Context, router string) error
		Release(ctx context.Context, router string) error
	}
	// hearOut has the clients of routers heard out before these move, all at the same
	// time: the node that has each, by the router's name.
	hearOut func(ctx context.Context, holders map[string]string)
	log     *slog.Logger
	back    map[string]bool // the routers that stand back since the drain began
}

func (s *standBack) String() string { return "stand back" }

func (s *standBack) Run(ctx context.Context, ready func()) error {
	ready()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := s.state.Changed()
		if err := s.follow(ctx); err != nil {
			s.log.Debug("stand back", "error", err)
			timer.Reset(standBackAgain)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
	}
}

// drained tells whether the store has the node in maintenance: what a drain
// writes down there, and nobody but an undrain takes away.
func (s *standBack) drained() bool {
	checks, _ := s.state.Snapshot().NodeChecks(nil, s.node)
	return slices.ContainsFunc(checks, func(c *state.Check) bool { return c.ID == api.NodeMaintenance })
}

// follow has the routers do what the store says. Its error is that they do not
// answer.
func (s *standBack) follow(ctx context.Context) error {
	drained := s.drained()
	if !drained && len(s.back) == 0 {
		return nil
	}
	reports, err := s.routers.Status(ctx)
	if err != nil {
		return err
	}
	if !drained {
		return s.release(ctx, reports)
	}
	return s.yield(ctx, reports)
}

// yield has the routers stand back that do not yet.
func (s *standBack) yield(ctx context.Context, reports []vrrp.RouterReport) error {
	var list []string
	holders := map[string]string{}
	for i := range reports {
		name, status := reports[i].Settings.Name, &reports[i].Status
		switch {
		case s.back[name] || status.Pulled:
			continue
		case !status.Yielded:
			holders[name] = s.node // if it is
		}
		list = append(list, name)
	}
	if len(holders) > 0 {
		s.hearOut(ctx, holders)
	}
	for _, name := range list {
		if holders[name] != "" {
			s.log.Info("stands back: the node is drained", "router", name)
			if err := s.routers.Yield(ctx, name); err != nil {
				return err
			}
		}
		if s.back == nil {
			s.back = map[string]bool{}
		}
		s.back[name] = true
	}
	return nil
}

// release has priorities decide about those again that stood back. One that a reload
// removed has nothing to be told, and what one answers does not keep the others, which
// would be heard out once more.
func (s *standBack) release(ctx context.Context, reports []vrrp.RouterReport) (err error) {
	holders, here := map[string]string{}, map[string]bool{}
	for i := range reports {
		name := reports[i].Settings.Name
		here[name] = true
		if holder := vrrp.LosesByRelease(reports, name, s.node); holder != "" && s.back[name] {
			holders[name] = holder
		}
	}
	if len(holders) > 0 {
		s.hearOut(ctx, holders)
	}
	for router := range s.back {
		if here[router] {
			if failed := s.routers.Release(ctx, router); failed != nil {
				err = errors.Join(err, failed)
				continue
			}
		}
		delete(s.back, router)
	}
	return err
}

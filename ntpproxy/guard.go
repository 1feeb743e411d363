package ntpproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"time"

	"holdfast/internal/ntp"
)

// errBug: a panic.
var errBug = errors.New("ntpproxy: a bug, please report it")

// guard calls f, and turns its panic into an error with the stack: a panic in a
// goroutine of ours would end the whole agent, and its other services.
func (s *Server) guard(what string, f func() error) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			s.metrics.panics.Inc()
			err = fmt.Errorf("%w: %s panicked: %v\n%s", errBug, what, bug, debug.Stack())
		}
	}()
	return f()
}

// beside does what takes its time in a goroutine of its own, and gives the loop
// what came of it. It ends with ctx, and keep waits for it.
func (k *keeper) beside(ctx context.Context, h heard, f func(*heard) error) {
	k.asking.Go(func() {
		h.err = k.server.guard("asking a source", func() error { return f(&h) })
		if errors.Is(h.err, errBug) {
			k.server.log.Error("a source is not heard", "error", h.err)
		}
		select {
		case k.heard <- h:
		case <-ctx.Done():
		}
	})
}

// goAsk asks a source at an address beside the loop.
func (k *keeper) goAsk(ctx context.Context, i int, at netip.AddrPort, raw time.Duration) {
	k.beside(ctx, heard{source: i, generation: k.generation, at: at, raw: raw}, func(h *heard) (err error) {
		h.sample, h.packet, h.from, err = exchange(ctx, at.String())
		return err
	})
}

// take takes what a goroutine brought: of sources as they are now, and of an
// address that is still the one to be asked.
func (k *keeper) take(ctx context.Context, h heard) {
	if h.generation != k.generation {
		return
	}
	if h.lookup {
		k.located(ctx, h)
		return
	}
	if now := k.addrs[h.source]; h.at != now && now.IsValid() {
		return // it was given up for another meanwhile
	}
	if h.err == nil {
		k.answered(h.source, h.at)
	}
	k.hear(h)
	if kiss, ok := errors.AsType[*ntp.KissError](h.err); ok && kiss.Code != ntp.KissRate {
		fresh := k.refusedBy(h.source, h.at, h.raw) // another of its name may serve us
		if fresh && k.addrs[h.source].IsValid() {
			k.core.Forget(h.source) // soon: it never refused us
		}
	}
}

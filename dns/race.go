package dns

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// race is one question on its way to forwarders, more than one at a time if
// need be.
type race struct {
	forwarder *forwarder
	route     *route
	query     *query
	order     []*upstream
	results   chan outcome
	running   sync.WaitGroup

	next, open int
	heard      bool // one of them gave a reply that is no answer
}

// errLoop says that there is nobody to ask who would not ask us.
var errLoop = errors.New("all forwarders lead back to this server")

// outcome is what one forwarder came to.
type outcome struct {
	upstream *upstream
	reply    *dns.Msg
	err      error
}

// run asks until one has an answer or all have failed.
func (r *race) run(ctx context.Context) (*dns.Msg, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the others are not waited for
	if len(r.order) == 0 {
		return nil, errLoop
	}
	explore := r.route.earn()
	r.start(ctx)
	if explore && r.next < len(r.order) && r.order[r.next] != r.order[0] {
		r.start(ctx)
	}
	hedge := time.NewTimer(r.route.hedgeAfter(r.order[0]))
	defer hedge.Stop()
	var failures []error
	for r.open > 0 {
		select {
		case <-hedge.C:
			if r.next < len(r.order) && r.route.mayHedge() {
				r.start(ctx)
			}
		case o := <-r.results:
			r.open--
			if o.err == nil {
				return o.reply, nil
			}
			var refusal *rcodeError
			r.heard = r.heard || errors.As(o.err, &refusal)
			failures = append(failures, fmt.Errorf("%s: %w", o.upstream.label, o.err))
			if r.next < len(r.order) && ctx.Err() == nil {
				r.start(ctx)
			}
		}
	}
	return nil, errors.Join(failures...)
}

// start asks the next in order.
func (r *race) start(ctx context.Context) {
	u := r.order[r.next]
	r.next++
	r.open++
	r.running.Go(func() {
		reply, err := r.forwarder.try(ctx, r.route, u, r.query)
		r.results <- outcome{u, reply, err}
	})
}

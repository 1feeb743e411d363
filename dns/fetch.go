package dns

import (
	"context"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// forwardAsync has a question answered by the route's forwarders in a
// goroutine of group, and gives the reply to send, which is called exactly
// once unless ctx ends. When there is no room it does so at once: SERVFAIL, so
// that the client asks the next server. packet must not change any more.
func (s *Server) forwardAsync(ctx context.Context, group *sync.WaitGroup, r *route, packet []byte, transport string, send func([]byte)) {
	f := &fetch{server: s, route: r, counters: newCounters(s.metrics, transport), limit: maxTCP}
	f.query.parse(packet) // was parsed before, and found good
	if transport == overUDP {
		f.limit = f.query.limit()
	}
	if !s.forwarder.acquire() {
		s.metrics.dropped.WithLabelValues("forwarding").Inc()
		send(f.failure())
		return
	}
	group.Go(func() {
		defer s.forwarder.release()
		if reply := f.do(ctx); ctx.Err() == nil {
			send(reply)
		}
	})
}

// fetch is one question at its forwarders.
type fetch struct {
	server   *Server
	route    *route
	query    query
	counters *counters
	limit    int
}

// do returns the packed reply, SERVFAIL if there is none.
func (f *fetch) do(ctx context.Context) (wire []byte) {
	defer func() {
		if bug := recover(); bug != nil {
			f.server.metrics.panics.Inc()
			f.server.log.Error("forwarding a question panicked: please report this bug", "panic", bug, "stack", string(debug.Stack()))
			wire = f.failure()
		}
	}()
	started := time.Now()
	defer func() { f.server.metrics.asked.Observe(time.Since(started).Seconds()) }()
	reply, err := f.server.forwarder.resolve(ctx, f.route, &f.query)
	if err != nil {
		f.server.log.Debug("no forwarder had an answer", "name", name(f.query.name).String(), "error", err)
		return f.failure()
	}
	if wire, err = f.relay(ctx, reply); err != nil {
		f.server.log.Debug("a forwarder's answer can't be relayed", "name", name(f.query.name).String(), "error", err)
		return f.failure()
	}
	f.counters.count(f.route.label, f.query.kind, reply.Rcode)
	f.counters.flush()
	return wire
}

// relay packs the reply for the client. Much is packed over TCP only.
func (f *fetch) relay(ctx context.Context, reply *dns.Msg) ([]byte, error) {
	if f.limit > maxReply && reply.Len() > maxReply {
		if err := f.route.large.take(ctx); err != nil {
			return nil, err
		}
		defer f.route.large.end()
	}
	return relay(reply, &f.query, f.limit)
}

// failure is SERVFAIL.
func (f *fetch) failure() []byte {
	f.counters.count(f.route.label, f.query.kind, dns.RcodeServerFailure)
	f.counters.flush()
	p := packer{rand: rand.New(rand.NewPCG(0, 0))} // has nothing to shuffle
	return p.pack(nil, &f.query, answer{rcode: dns.RcodeServerFailure}, true, f.limit)
}

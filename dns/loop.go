package dns

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// A loop is a forwarder that, directly or by way of others, forwards to us.
// Each question would go round until somebody gives up. So now and then each
// forwarder is asked for a name that nobody else knows; who lets it come back
// to us is not asked any more.
const (
	probeAfter = 5 * time.Second  // the start, or a new cluster file
	probeEvery = 10 * time.Minute // from then on
	probeLabel = "holdfast-loop"
	probeSize  = 8 // bytes of a probe's number
)

// loopProbe is the number in the probes of one server; random, so that no two
// servers take each other's for their own.
type loopProbe [probeSize]byte

func newLoopProbe() (p loopProbe) {
	_, _ = cryptorand.Read(p[:]) // never fails (crypto/rand)
	return p
}

// probeName is what the i-th forwarder of a route is asked for.
func (p loopProbe) name(r *route, i int) (name, bool) {
	return r.domain.child(hex.EncodeToString(append(p[:], byte(i))), probeLabel)
}

// recognises tells whether a question is one of our probes come back, and
// which forwarder of the route had been asked it.
func (p loopProbe) recognises(q *query) (forwarder int, ok bool) {
	const digits = 2 * (probeSize + 1)
	if len(q.name) < 1+digits+1+len(probeLabel) || q.name[0] != digits ||
		int(q.name[1+digits]) != len(probeLabel) || string(q.name[2+digits:][:len(probeLabel)]) != probeLabel {
		return 0, false
	}
	var number [probeSize + 1]byte
	if _, err := hex.Decode(number[:], q.name[1:1+digits]); err != nil || loopProbe(number[:probeSize]) != p {
		return 0, false
	}
	return int(number[probeSize]), true
}

// probe looks for loops until ctx ends.
func (f *flights) probe(ctx context.Context) error {
	timer := time.NewTimer(f.server.rest)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.server.reprobe:
			timer.Reset(f.server.rest)
		case <-timer.C:
			f.probeAll(ctx)
			timer.Reset(probeEvery)
		}
	}
}

// probeAll asks every forwarder for its probe, all at once, and waits for
// what they say to it.
func (f *flights) probeAll(ctx context.Context) {
	var group sync.WaitGroup
	for _, c := range f.server.table.Load().cuts {
		if r := c.route; r != nil {
			group.Go(func() { f.probeRoute(ctx, r) })
		}
	}
	group.Wait()
}

func (f *flights) probeRoute(ctx context.Context, r *route) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var group sync.WaitGroup
	for i, u := range r.upstreams {
		n, ok := f.server.probe.name(r, i)
		if !ok {
			continue // the domain's name is too long for it
		}
		group.Go(func() {
			u.probed.Store(false)
			m := new(dns.Msg).SetQuestion(n.String(), dns.TypeTXT)
			_, _ = u.exchange(ctx, overUDP, m) // what it says to it does not matter
			if ctx.Err() == nil || !u.looping.Load() {
				u.looping.Store(u.probed.Load())
			}
		})
	}
	group.Wait()
	f.server.forwarder.showLoops(r)
}

// cameBack notes that a probe did.
func (f *flights) cameBack(r *route, i int) {
	if i < len(r.upstreams) {
		r.upstreams[i].probed.Store(true)
		r.upstreams[i].looping.Store(true)
	}
}

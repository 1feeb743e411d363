package dns

import (
	"context"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// NOTIFY (RFC 1996) is sent again, further and further apart, until the
// secondary has said that it heard.
const (
	notifyTimeout  = time.Second
	notifyAttempts = 6
)

// notice is what a secondary was told of a zone.
type notice struct {
	serial   uint32
	heard    bool
	attempts int
	next     time.Time
}

type noticeKey struct {
	secondary secondary
	zone      name
}

// notifySecondaries tells the secondaries of zones whose serials they may not
// have. It is called about once a second, and blocks for a second at most. The
// virtual zone is left out: it changes all the time.
func (s *Server) notifySecondaries(ctx context.Context) {
	t := s.table.Load()
	now := s.now()
	var group sync.WaitGroup
	for origin, c := range t.cuts {
		if c.zone == nil || c.zone.catalog {
			continue
		}
		serial := c.zone.serial
		for _, to := range t.transfer.notify {
			n := s.notices[noticeKey{to, origin}]
			if n == nil || n.serial != serial {
				n = &notice{serial: serial}
				s.notices[noticeKey{to, origin}] = n
			}
			if n.heard || n.attempts >= notifyAttempts || now.Before(n.next) {
				continue
			}
			n.attempts++
			n.next = now.Add(time.Second << n.attempts)
			group.Go(func() { s.notify(ctx, t, c.zone, to, n) })
		}
	}
	group.Wait()
}

// notify sends one NOTIFY and waits for the reply.
func (s *Server) notify(ctx context.Context, t *table, z *zone, to secondary, n *notice) {
	m := new(dns.Msg).SetNotify(z.label)
	m.Authoritative = true
	client := dns.Client{Timeout: notifyTimeout}
	if to.key != "" {
		key := t.transfer.keys[to.key]
		m.SetTsig(to.key, key.algorithm, tsigFudge, time.Now().Unix())
		client.TsigSecret = map[string]string{to.key: key.secret}
	}
	reply, _, err := client.ExchangeContext(ctx, m, to.addr.String())
	result := "heard"
	switch {
	case err != nil:
		result = "silent"
	case reply.Rcode != dns.RcodeSuccess:
		result = "refused"
	default:
		n.heard = true
	}
	s.metrics.notifies.WithLabelValues(to.addr.String(), result).Inc()
	if !n.heard && n.attempts == notifyAttempts {
		s.log.Warn("a secondary does not take notice of a zone's new serial; it will ask by itself in time",
			"zone", z.label, "secondary", to.addr, "serial", n.serial, "result", result, "error", err)
	}
}

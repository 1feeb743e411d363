package dns

import (
	"time"

	"github.com/miekg/dns"
)

// onward is an alias of one of our zones that leads to a name of others: stub
// resolvers don't follow it by themselves.
type onward struct {
	target name   // what is asked of the forwarders
	prefix []byte // the reply as far as our zones have it
}

// instead makes one who waits for the question wait for what the alias leads
// to. His reply is put together of both.
func (o *onward) instead(w waiter) (waiter, error) {
	m := new(dns.Msg)
	if err := m.Unpack(w.query.packet); err != nil {
		return w, err
	}
	m.Question[0].Name = o.target.String()
	packet, err := m.Pack()
	if err != nil {
		return w, err
	}
	original := w
	w.query, w.limit = new(query), maxTCP
	if f := w.query.parse(packet); f != "" {
		return original, errMalformed
	}
	w.query.reply = original.query.reply // the cookie
	w.send = func(reply []byte) {
		if reply != nil {
			reply = o.join(reply, original)
		}
		original.send(reply)
	}
	return w, nil
}

// join puts the two parts of a reply together: the records of both, the rcode
// of the last name (RFC 6604 §3).
func (o *onward) join(reply []byte, w waiter) []byte {
	whole, rest := new(dns.Msg), new(dns.Msg)
	if whole.Unpack(o.prefix) != nil || rest.Unpack(reply) != nil {
		return serverFailure(w)
	}
	whole.Rcode = rest.Rcode
	whole.Answer = append(whole.Answer, rest.Answer...)
	whole.Ns = rest.Ns
	whole.Extra = rest.Extra // our own OPT among them
	answers := len(whole.Answer)
	whole.Truncate(w.limit)
	whole.Truncated = len(whole.Answer) < answers
	whole.Compress = true
	packed, err := whole.Pack()
	if err != nil || len(packed) > w.limit {
		return serverFailure(w)
	}
	return packed
}

// serverFailure is SERVFAIL, and nothing else.
func serverFailure(w waiter) []byte {
	return failureEntry(w.query, nil, time.Time{}).append(nil, w.query, time.Time{}, w.limit, nil)
}

package dns

import (
	"context"
	"net/netip"

	"github.com/miekg/dns"
)

// Bounds of transfers.
const (
	maxTransfers    = 4        // at a time; more wait
	transferMessage = 16 << 10 // bytes of records in one message, before compression
)

// transfer sends a zone to a secondary (RFC 5936), over TCP: the zone as it is
// at this moment, whatever changes meanwhile. IXFR (RFC 1995) is answered
// with the whole zone too, or with the SOA alone when nothing is new.
func (s *Server) transfer(ctx context.Context, c *stream, packet []byte, client netip.Addr) error {
	t := s.table.Load()
	q := new(dns.Msg)
	if err := q.Unpack(packet); err != nil || len(q.Question) != 1 {
		return nil // the worker has parsed it: not possible
	}
	asked := q.Question[0]
	who, err := t.transfer.verify(packet)
	if err != nil {
		return nil
	}
	reply := func(rcode int, records []dns.RR, more bool) error {
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Rcode: rcode, Authoritative: rcode == dns.RcodeSuccess}, Compress: true, Answer: records}
		if !more {
			m.Question = q.Question
		}
		wire, err := who.sign(m, more)
		if err != nil {
			return err
		}
		return c.write(wire)
	}
	n, err := wireName(asked.Name)
	z := t.cuts[n].zone
	result := "sent"
	switch {
	case who != nil && !who.good():
		result, err = "bad_signature", reply(dns.RcodeNotAuth, nil, false)
	case !t.transfer.allows(client, who.good()):
		result, err = "refused", reply(dns.RcodeRefused, nil, false)
	case err != nil || z == nil:
		result, err = "not_primary", reply(dns.RcodeNotAuth, nil, false)
	default:
		select {
		case s.transfers <- struct{}{}:
			defer func() { <-s.transfers }()
		case <-ctx.Done():
			return ctx.Err()
		}
		err = sendZone(q, z, reply)
		if err != nil {
			result = "failed"
		}
	}
	s.metrics.transfers.WithLabelValues(zoneLabel(z), result).Inc()
	if result != "sent" {
		s.log.Warn("zone not transferred", "zone", asked.Name, "client", client, "result", result, "error", err)
	} else {
		s.log.Info("zone transferred", "zone", asked.Name, "client", client)
	}
	return err
}

// sendZone sends the records of a zone, the SOA first and last.
func sendZone(q *dns.Msg, z *zone, reply func(rcode int, records []dns.RR, more bool) error) error {
	records := z.records()
	if len(records) == 0 || records[0].Header().Rrtype != dns.TypeSOA {
		return reply(dns.RcodeServerFailure, nil, false)
	}
	soa := records[0].(*dns.SOA)
	if q.Question[0].Qtype == dns.TypeIXFR && upToDate(q, soa.Serial) {
		return reply(dns.RcodeSuccess, []dns.RR{soa}, false)
	}
	records = append(records, soa)
	more := false
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && size < transferMessage {
			size += dns.Len(records[n])
			n++
		}
		if err := reply(dns.RcodeSuccess, records[:n], more); err != nil {
			return err
		}
		records, more = records[n:], true
	}
	return nil
}

// upToDate tells whether the serial that a secondary has is no older
// (RFC 1982).
func upToDate(q *dns.Msg, serial uint32) bool {
	if len(q.Ns) != 1 {
		return false
	}
	has, ok := q.Ns[0].(*dns.SOA)
	return ok && int32(serial-has.Serial) <= 0
}

package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"holdfast/internal/state"
)

// RecordReport is one static record, for people.
type RecordReport struct {
	Record string `json:"record"` // in zone file form
	From   string `json:"from"`   // "file" or "store"
	Index  uint64 `json:"index,omitempty"`
}

// Records lists the static records: those of the cluster file in its order,
// then the store's by name. It does not block.
func (s *Server) Records() []RecordReport {
	s.mu.Lock()
	c := s.compiler
	s.mu.Unlock()
	list := []RecordReport{}
	for _, r := range c.statics {
		list = append(list, RecordReport{Record: r.String(), From: "file"})
	}
	docs, _ := s.state.Snapshot().Documents(nil, kindRecord)
	for _, d := range docs {
		text := d.Key
		if r, err := stored(d, c.file.Domain); err == nil {
			text = r.String()
		}
		list = append(list, RecordReport{Record: text, From: "store", Index: d.ModifyIndex})
	}
	return list
}

// AddRecord puts a record, or with a node set as its owner several, into the
// store: text is OWNER [TTL] TYPE DATA. A record that is there gets the TTL.
// It blocks until every record is applied on this node, or for five seconds,
// and gives the records as they were written. The error wraps
// state.ErrInvalid, or is the Proposer's.
func (s *Server) AddRecord(ctx context.Context, text string) ([]string, error) {
	return s.changeRecords(ctx, text, func(r static) (state.PutDocument, error) {
		s.mu.Lock()
		err := s.compiler.refuses(r, s.table.Load())
		s.mu.Unlock()
		if err != nil {
			return state.PutDocument{}, err
		}
		ttl := strconv.FormatUint(uint64(r.rr.Header().Ttl), 10)
		return state.PutDocument{Verb: state.Set, Document: state.Document{Kind: kindRecord, Key: r.key(), Value: []byte(ttl)}}, nil
	})
}

// DeleteRecord takes records out of the store; text as for AddRecord, whose
// TTL does not count. One that is not there is an error that wraps
// state.ErrNotFound, and then none is taken out.
func (s *Server) DeleteRecord(ctx context.Context, text string) ([]string, error) {
	snap := s.state.Snapshot()
	return s.changeRecords(ctx, text, func(r static) (state.PutDocument, error) {
		if d, _ := snap.Document(nil, kindRecord, r.key()); d == nil {
			return state.PutDocument{}, fmt.Errorf("%w: the store has no record %q", state.ErrNotFound, r.key())
		}
		return state.PutDocument{Verb: state.Delete, Document: state.Document{Kind: kindRecord, Key: r.key()}}, nil
	})
}

// changeRecords turns text into commands, all of them before the first is
// proposed.
func (s *Server) changeRecords(ctx context.Context, text string, command func(static) (state.PutDocument, error)) ([]string, error) {
	if s.proposer == nil {
		return nil, errors.New("dns: records can't be changed here: there is no store")
	}
	s.mu.Lock()
	c := s.compiler
	s.mu.Unlock()
	list, err := expandStatic(text, c.file.Domain, seconds(c.zoneTTL))
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", state.ErrInvalid, text, err)
	}
	var commands []state.PutDocument
	var written []string
	for _, r := range list {
		cmd, err := command(r)
		switch {
		case errors.Is(err, state.ErrNotFound):
			return nil, err
		case err != nil:
			return nil, fmt.Errorf("%w: %s: %w", state.ErrInvalid, r, err)
		}
		commands = append(commands, cmd)
		written = append(written, r.String())
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	for i, cmd := range commands {
		if _, err := s.proposer.Propose(ctx, cmd); err != nil {
			return written[:i], fmt.Errorf("dns: after %d of %d records: %w", i, len(commands), err)
		}
	}
	return written, nil
}

// ZoneText gives a zone as this server has it, in zone file form: the SOA
// first, then names in canonical order. Not ok: there is no such zone. Of the
// virtual zone it is what a client would be told at this moment.
func (s *Server) ZoneText(zone string) (text string, ok bool) {
	records, ok := s.zoneRecords(zone)
	if !ok {
		return "", false
	}
	var b strings.Builder
	for _, rr := range records {
		b.WriteString(rr.String() + "\n")
	}
	return b.String(), true
}

// Zones lists the zones that this server is primary for.
func (s *Server) Zones() []string {
	var list []string
	for origin, c := range s.table.Load().cuts {
		if c.zone != nil {
			list = append(list, origin.String())
		}
	}
	slices.Sort(list)
	return list
}

// zoneRecords unpacks all records of a zone, the SOA first.
func (s *Server) zoneRecords(zone string) ([]dns.RR, bool) {
	origin, err := parseName(zone)
	if err != nil {
		return nil, false
	}
	z := s.table.Load().cuts[origin].zone
	if z == nil {
		return nil, false
	}
	return z.records(), true
}

// records unpacks all records of the zone: the SOA first, then by name.
func (z *zone) records() []dns.RR {
	var names []name
	for _, shard := range z.names.shards {
		for n, at := range shard {
			if len(at.sets) > 0 && n.below(z.origin) {
				names = append(names, n)
			}
		}
	}
	slices.SortFunc(names, canonical)
	var first, all []dns.RR
	for _, n := range names {
		at := z.names.get([]byte(n))
		for _, set := range at.sets {
			for i := range set.records {
				rr, err := set.records[i].unpack(n, z.origin)
				switch {
				case err != nil: // packed by ourselves
				case set.kind == dns.TypeSOA:
					first = append(first, rr)
				default:
					all = append(all, rr)
				}
			}
		}
	}
	return append(first, all...)
}

// unpack makes a record of the library's of ours.
func (r *record) unpack(owner, origin name) (dns.RR, error) {
	wire := append([]byte(owner), r.wire...)
	for i := len(r.origins) - 1; i >= 0; i-- { // the name, in the place of a pointer to it
		at := int(r.origins[i])
		if at == 0 {
			continue
		}
		at += len(owner)
		wire = append(wire[:at:at], append([]byte(origin), wire[at+2:]...)...)
		length := wire[len(owner)+offsetLength:]
		size := int(length[0])<<8 + int(length[1]) + len(origin) - 2
		length[0], length[1] = byte(size>>8), byte(size)
	}
	rr, _, err := dns.UnpackRR(wire, 0)
	return rr, err
}

// canonical is DNSSEC's order of names (RFC 4034 §6.1): by labels, from the
// right.
func canonical(a, b name) int {
	la, lb := labelsFromRight(a, root), labelsFromRight(b, root)
	return slices.Compare(la, lb)
}

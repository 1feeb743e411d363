package vrrp

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// Departure is the word that a router, with its group, is about to go from the node
// that holds it, by somebody's order.
type Departure struct {
	Router string
	In     time.Duration // how soon; 0: as soon as this is answered
	By     string        // the node that says so; "" an admin
}

// Args are a Departure as the query of POST AdminPath + "leave/NAME".
func (d Departure) Args() url.Values {
	args := url.Values{}
	if d.In > 0 {
		args.Set("in", d.In.String())
	}
	if d.By != "" {
		args.Set("by", d.By)
	}
	return args
}

// ParseDeparture is the other direction. Its error is a duration that is none.
func ParseDeparture(router string, args url.Values) (Departure, error) {
	in, err := time.ParseDuration(cmp.Or(args.Get("in"), "0s"))
	if err != nil || in < 0 {
		return Departure{}, fmt.Errorf("in %q: want a duration, 0s or more", args.Get("in"))
	}
	return Departure{Router: router, In: in, By: args.Get("by")}, nil
}

// LosesByRelease is the node that a router goes from as soon as it is released here,
// on node; "" none, as far as this one knows. Where it goes after PreemptDelay, the
// node that takes it says so then.
func (r *RouterReport) LosesByRelease(node string) (holder string) {
	set, status := &r.Settings, &r.Status
	if !set.Preempt && set.Priority != owner || set.PreemptDelay > 0 {
		return ""
	}
	switch {
	case status.State == Active && status.Pulled && r.wasTaken(node):
		return node
	case status.State == Backup && status.Yielded:
		at := slices.IndexFunc(status.Peers, func(p PeerStatus) bool { return p.Address == status.Active })
		if at >= 0 && !status.Peers[at].outranks(status.Released, set.Source) {
			return set.Nodes[status.Active]
		}
	}
	return ""
}

// wasTaken tells whether this node, which was told to hold, holds in place of a better
// one: of one whose last advert was still in force when it became Active. A Backup says
// nothing, so it is not known whether that one still waits. Where nobody was heard at
// all, since the agent began anew, the order decides.
func (r *RouterReport) wasTaken(node string) bool {
	silent := true
	for i := range r.Status.Peers {
		p := &r.Status.Peers[i]
		if p.At.IsZero() {
			continue
		}
		silent = false
		if p.outranks(r.Status.Released, r.Settings.Source) && !p.At.Add(3*p.Advert.Interval).Before(r.Status.Since) {
			return true
		}
	}
	return silent && len(r.Settings.Order) > 0 && r.Settings.Order[0] != node
}

// outranks tells whether the peer is rather to be Active, by what it last said, than
// one with a priority and an address (RFC 9568 §6.4.3).
func (p *PeerStatus) outranks(priority uint8, source netip.Addr) bool {
	theirs := p.Advert.Priority
	return theirs > priority || theirs == priority && p.Address.Compare(source) > 0
}

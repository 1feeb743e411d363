package vrrp

import (
	"cmp"
	"fmt"
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

// LosesByRelease is the node that a router, with its group, goes from as soon as it is
// released here, on node; "" none, as far as this one knows, which has these reports.
// Where it goes after PreemptDelay, the node that takes it says so then.
func LosesByRelease(reports []RouterReport, name, node string) (holder string) {
	group := groupOf(reports, name)
	for _, r := range group {
		if set := &r.Settings; !set.Preempt && set.Priority != owner || set.PreemptDelay > 0 {
			return ""
		}
	}
	if len(group) == 0 {
		return ""
	}
	switch status := &group[0].Status; {
	case status.State == Active && status.Pulled && wasTaken(group, node):
		return node
	case status.State == Backup && status.Yielded:
		for _, r := range group { // it takes over as one
			if !r.beatsActive() {
				return ""
			}
		}
		return group[0].Settings.Nodes[status.Active]
	}
	return ""
}

// groupOf are a router and those of its sync group; none if there is no such router.
func groupOf(reports []RouterReport, name string) (group []*RouterReport) {
	at := slices.IndexFunc(reports, func(r RouterReport) bool { return r.Settings.Name == name })
	if at < 0 {
		return nil
	}
	for i := range reports {
		if g := reports[i].Settings.Group; i == at || g != "" && g == reports[at].Settings.Group {
			group = append(group, &reports[i])
		}
	}
	return group
}

// beatsActive tells whether it takes over once it is released: from a lower priority
// only (RFC 9568 §6.4.2).
func (r *RouterReport) beatsActive() bool {
	at := slices.IndexFunc(r.Status.Peers, func(p PeerStatus) bool { return p.Address == r.Status.Active })
	return at >= 0 && r.Status.Peers[at].Advert.Priority < r.Status.Released
}

// wasTaken tells whether this node, which was told to hold, holds a group in place of a
// better one: of one whose last advert was still in force when it became Active. One
// member's is enough: when a group gives way, the others say priority 0. A Backup says
// nothing, so it is not known whether that one still waits. Where nobody was heard at
// all, since the agent began anew, the order decides.
func wasTaken(group []*RouterReport, node string) bool {
	silent := true
	for _, r := range group {
		for i := range r.Status.Peers {
			p := &r.Status.Peers[i]
			if p.At.IsZero() {
				continue
			}
			silent = false
			if p.Advert.Priority > r.Status.Released && !p.At.Add(3*p.Advert.Interval).Before(r.Status.Since) {
				return true
			}
		}
	}
	order := group[0].Settings.Order // which a group has in common
	return silent && len(order) > 0 && order[0] != node
}

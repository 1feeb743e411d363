package vrrp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"holdfast/internal/kernel/link"
)

// reports tells about every router.
func (v *session) reports(ctx context.Context) ([]RouterReport, error) {
	made := make(chan []RouterReport, 1)
	err := v.loop.do(ctx, func() {
		defer close(made)
		var reports []RouterReport
		for i, in := range v.loop.instances {
			reports = append(reports, in.report(v.loop.machine.Status(i), v.loop.machine.Counters(i), v.fence.report(in.settings.Name)))
		}
		made <- reports
	})
	if err != nil { // the loop may be at it still, or never come to it
		return nil, err
	}
	return <-made, nil
}

func (in *instance) report(status Status, counters Counters, lease *LeaseReport) RouterReport {
	r := RouterReport{
		Settings: in.settings, Status: status, Lease: lease, History: slices.Clone(in.history),
		Link: LinkReport{
			Index: in.spot.link.Index, Name: in.spot.link.Name, MAC: in.spot.link.MAC.String(),
			Up: in.settle.up, Why: in.spot.why,
		},
		Stats: Stats{
			Sent: in.sent, Received: counters.Received, SendErrors: in.sendErrors, LastSent: in.lastSent, LastSeen: in.lastSeen,
		},
	}
	r.Settings.Interface, r.Settings.Source = in.spot.link.Name, in.core.Source
	r.Settings.Password = [8]byte{} // nobody's to see
	in.applied.tell(&r)
	return r
}

// tell adds what the applier knows.
func (s *applied) tell(r *RouterReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Stats.Announcements, r.Stats.Returned, r.Stats.Announced = s.announcements, s.returned, s.announced
	r.Claimant = s.claimant
	for _, prefix := range r.Settings.Held {
		r.Held = append(r.Held, AddressReport{
			Prefix: prefix, Wanted: r.wants(), Present: s.present[prefix] != 0, Error: s.errs[prefix],
		})
	}
}

// plan compares what should be with what there is.
func (v *session) plan(ctx context.Context) ([]Change, error) {
	reports, err := v.reports(ctx)
	if err != nil {
		return nil, err
	}
	addrs, err := v.handle.Addrs()
	if err != nil {
		return nil, fmt.Errorf("vrrp: plan: %w", err)
	}
	links, err := v.handle.Links()
	if err != nil {
		return nil, fmt.Errorf("vrrp: plan: %w", err)
	}
	return compare(reports, v.journal.list(), links, addrs), nil
}

// compare is the pure part of plan.
func compare(reports []RouterReport, ours []entry, links []link.Link, addrs []link.Addr) (changes []Change) {
	wanted := map[netip.Prefix]bool{}
	for i := range reports {
		r := &reports[i]
		for _, prefix := range r.Settings.Held {
			if !r.wants() {
				continue
			}
			wanted[prefix] = true
			c := Change{Router: r.Settings.Name, Interface: r.Link.Name, Prefix: prefix, Kind: Add, Why: "Active here, and the address is missing"}
			switch {
			case r.Link.Why != "":
				c.Kind, c.Why = Wait, r.Link.Why
			case onLink(addrs, r.Link.Index, prefix):
				continue
			}
			changes = append(changes, c)
		}
	}
	for _, a := range addrs {
		if c, ok := surplus(a, reports, ours, wanted); ok {
			c.Interface = nameOf(links, a.Link)
			changes = append(changes, c)
		}
	}
	return changes
}

func onLink(addrs []link.Addr, index int, prefix netip.Prefix) bool {
	return slices.ContainsFunc(addrs, func(a link.Addr) bool { return a.Link == index && a.Prefix == prefix })
}

func nameOf(links []link.Link, index int) string {
	for _, l := range links {
		if l.Index == index {
			return l.Name
		}
	}
	return ""
}

// surplus judges an address that the kernel has: one of a virtual router that
// should not be here.
func surplus(a link.Addr, reports []RouterReport, ours []entry, wanted map[netip.Prefix]bool) (Change, bool) {
	journaled := slices.ContainsFunc(ours, func(e entry) bool { return e.Index == a.Link && e.Prefix == a.Prefix })
	for i := range reports {
		r := &reports[i]
		held := slices.ContainsFunc(r.Settings.Held, func(p netip.Prefix) bool { return p.Addr() == a.Prefix.Addr() })
		if !held || wanted[a.Prefix] && a.Link == r.Link.Index {
			continue
		}
		if journaled {
			return Change{Router: r.Settings.Name, Prefix: a.Prefix, Kind: Remove, Why: "ours, and not wanted here now"}, true
		}
		return Change{Router: r.Settings.Name, Prefix: a.Prefix, Kind: Ignore,
			Why: "an address of the virtual router that another program or person put here: two nodes may answer for it"}, true
	}
	return Change{}, false
}

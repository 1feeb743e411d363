package vrrp

import (
	"log/slog"
	"net/netip"
	"slices"
)

// newInstance makes a router; resolve gives it its interface.
func (l *loop) newInstance(settings RouterSettings) *instance {
	l.dirty = true
	return &instance{
		log:      l.logOf(&settings),
		metrics:  l.metrics.router(settings.Name),
		settings: settings,
		core:     coreOf(&settings, l.table.find(&settings)),
		applied:  newApplied(),
	}
}

func (l *loop) logOf(settings *RouterSettings) *slog.Logger {
	return l.log.With("router", settings.Name, "vrid", settings.VRID)
}

// linkTrack is the name under which the machine tracks the interface of a
// router. Each has one of its own: a debounce is the router's.
func linkTrack(router string) string { return "interface of " + router }

// coreOf is what the machine is to know of a router at its spot. While the
// link-local address that adverts over IPv6 come from is not known, the node's
// own stands for it: the family is right.
func coreOf(settings *RouterSettings, at spot) Router {
	core := settings.Router
	switch {
	case at.source.IsValid():
		core.Source = at.source
	case !core.Source.IsValid():
		core.Source = settings.Home
	}
	core.Tracks = append(slices.Clone(core.Tracks), Track{Name: linkTrack(core.Name)})
	return core
}

// is6 tells the router's family.
func (r *Router) is6() bool { return r.Source.Is6() }

// keepsake is what the guard has to know to withdraw a router in our place.
func (l *loop) keepsake(in *instance) guardWord {
	word := guardWord{
		Router: in.settings.Name, Index: in.spot.link.Index, Name: in.spot.link.Name, MAC: in.spot.link.MAC,
		Source: in.core.Source, Patience: guardPatience(&in.core),
	}
	to := in.core.Peers
	if len(to) == 0 {
		to = []netip.Addr{in.group()}
	}
	advert := in.advert(0, in.core.Interval)
	for _, addr := range to {
		word.Partings = append(word.Partings, parting{To: addr, Payload: advert.Append(nil, in.core.Source, addr, in.core.Checksum)})
	}
	return word
}

// group is where adverts go to by multicast.
func (in *instance) group() netip.Addr {
	if in.core.is6() {
		return groupIPv6
	}
	return groupIPv4
}

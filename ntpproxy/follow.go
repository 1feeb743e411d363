package ntpproxy

import (
	"net/netip"
	"slices"
	"time"

	"holdfast/ntpproxy/discipline"
)

// steers tells whether the file gives the clock to this node.
func (s *settings) steers() bool { return s.keep != keepServe && (len(s.sources) > 0 || s.orphanSaid) }

// discipline is what the file says of how the clock is kept.
func (s *settings) discipline() discipline.Config {
	config := discipline.Config{StepOver: s.step, Agreeing: s.agreeing, Growth: s.growth, Slew: s.slew, Leap: s.leap.mode, Shape: s.leap.shape}
	for _, name := range s.sources {
		config.Sources = append(config.Sources, discipline.SourceConfig{Name: name, MinPoll: s.minPoll, MaxPoll: s.maxPoll, Burst: true})
	}
	if s.orphanSaid || len(s.peers) > 0 {
		config.Orphan = s.orphan
	}
	for _, p := range s.peers {
		config.Sources = append(config.Sources, discipline.SourceConfig{Name: p.node, MinPoll: min(peerPoll, s.minPoll), MaxPoll: min(peerPoll, s.minPoll), Burst: true, Peer: true})
	}
	return config
}

// places are host:port of all that are asked: the sources, then the other nodes.
func (s *settings) places() []string {
	list := slices.Clone(s.sources)
	for _, p := range s.peers {
		list = append(list, p.addr.String())
	}
	return list
}

// adopt takes a changed file over; false: it gives the clock to another.
func (k *keeper) adopt(set *settings) bool {
	if set == k.set && !k.leapLater {
		return true
	}
	if !set.steers() {
		return false
	}
	now, err := k.server.clock.Now()
	if err != nil {
		return true // at the next turn, which says so
	}
	later := k.core.Reconfigure(set.discipline(), now.Raw)
	if later && !k.leapLater {
		k.server.log.Warn("ntp.leap.mode or ntp.leap.shape changed in the cluster file: it takes effect when the leap second is over that is near", "in_use", k.core.LeapMode())
	}
	k.leapLater = later
	if set != k.set {
		k.follow(set)
	}
	return true
}

// follow asks whom the file names from now on. Where a name leads that is in
// both files is still known.
func (k *keeper) follow(set *settings) {
	places, first := set.places(), k.set == nil
	k.set, k.peers = set, set.peers
	if !first && slices.Equal(places, k.names) {
		return
	}
	names, addrs, last, looked, leads := k.names, k.addrs, k.last, k.looked, k.leads
	n := len(places)
	k.names, k.leads = places, nil
	k.addrs, k.last, k.looked = make([]netip.AddrPort, n), make([]netip.Addr, n), make([]time.Duration, n)
	k.generation++
	taken := make([]bool, len(names))
	for i, name := range places {
		for j, b := range names {
			if b != name || taken[j] {
				continue
			}
			taken[j] = true
			k.addrs[i], k.last[i], k.looked[i] = addrs[j], last[j], looked[j]
			if l := leads[j]; l != nil {
				*k.lead(i) = lead{found: l.found, silent: l.silent, tried: l.tried, shun: l.shun, denied: l.denied, again: l.again} // who is on the way is not heard any more
			}
			break
		}
	}
}

// bridge: the source that led is in the file no more. Until another leads,
// clients are told what they were told before, with the error that grows.
func (k *keeper) bridge(report *Kept) {
	was := k.server.kept.Load()
	if was != nil && report.Synchronised && report.Leading < 0 && report.Stratum == 0 {
		report.Stratum, report.reference = was.Stratum, was.reference
	}
}

// leave is what is done last, unless the clock is another's: the kernel is left
// at what the oscillator needs, and that is remembered.
func (k *keeper) leave() {
	if k.told == nil {
		return
	}
	if k.core.Smeared() {
		if err := k.handOver(inKernel(k.core.Frequency()), k.core.Leave); err != nil {
			k.server.log.Warn("the clock is left at the rate of a smear", "error", err)
		}
	}
	k.remember()
}

package ntpproxy

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"holdfast/internal/health"
	"holdfast/internal/ntp"
	"holdfast/ntpproxy/discipline"
)

// How packets name a time that no source stands behind: chronyd's word for its
// own `local`, and one of ours. Both are no address of anybody's.
var (
	orphanReference = ntp.Reference{127, 127, 1, 1}
	aloneReference  = ntp.Reference{127, 127, 1, 0}
)

// reference is how packets name what stands behind this node's time. The other
// nodes read from it whether they may follow (authority), so that it goes by
// the phase first: who was an orphan leader is no authority any more because a
// source does not answer at the moment.
func (k *keeper) reference(t *discipline.Tracking) ntp.Reference {
	switch {
	case t.Phase == discipline.OrphanLeader:
		return orphanReference
	case t.Phase == discipline.Alone || t.Leading < 0:
		return aloneReference
	case t.Smearing && t.Phase == discipline.Sourced: // else the node that we follow says so
		return ntp.SmearReference(t.Smeared)
	}
	return referenceOf(k.last[t.Leading]) // the address that answered, also while it is silent
}

// authority is what stands behind a node's answer.
func (k *keeper) authority(p ntp.Packet) discipline.Authority {
	switch {
	case p.ReferenceID == orphanReference:
		return discipline.LeaderAuthority
	case p.Stratum > 1 && (p.ReferenceID == aloneReference || slices.Contains(k.set.nodes, p.ReferenceID)):
		return discipline.NoAuthority
	}
	return discipline.SourceAuthority
}

// conditionOrphan: this node's sources are gone, or can't set its clock.
const conditionOrphan = "ntp.orphan"

// orphaned says in a condition where the time comes from. A cluster that is to
// have no sources is in order as long as somebody leads it.
func (k *keeper) orphaned(phase discipline.Phase) {
	why := "none of this node's sources answers, or too few agree, see `holdfast ntp sources`: "
	if len(k.set.sources) == 0 {
		if phase != discipline.Alone {
			k.server.board.Clear(conditionOrphan)
			return
		}
		why = "ntp.sources is empty, "
	}
	switch phase {
	case discipline.Following:
		k.server.board.Raise(conditionOrphan, health.Warning, why+"it follows the nodes that still have one")
	case discipline.OrphanLeader:
		k.server.board.Raise(conditionOrphan, health.Error, why+"nor does any other node have one; as the store's leader this node keeps the cluster's time by its own oscillator")
	case discipline.Orphan:
		k.server.board.Raise(conditionOrphan, health.Error, why+"nor does any other node have one; it follows the store's leader")
	case discipline.Alone:
		k.server.board.Raise(conditionOrphan, health.Error, why+"and no leader of the store serves the time; its clock runs on alone")
	default:
		k.server.board.Clear(conditionOrphan)
	}
}

// refused takes a kiss of death. Who denies us for good may not be all that its
// name leads to.
func (k *keeper) refused(h heard) {
	kiss, _ := errors.AsType[*ntp.KissError](h.err)
	denied := kiss.Code != ntp.KissRate
	if denied {
		k.addrs[h.source] = netip.AddrPort{}
	}
	k.core.Refused(h.source, denied)
}

// lookApart is by how much the daily look-up of each name comes earlier than
// that of the one before it in the list, so that names that were looked up
// together, at the start or after an outage, don't lead to other servers
// together. It is more than the longest poll by default, and leaves the last of
// maxSources half a day.
const lookApart = 45 * time.Minute

// dropStep forgets that an admin allowed a step: it was another keeper that he
// spoke to, and what it knew.
func (s *Server) dropStep() {
	select {
	case <-s.stepNow:
	default:
	}
}

package vrrp

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"holdfast/internal/health"
)

// Conditions that are not about one router.
const (
	conditionGuard    = "vrrp.guard"
	conditionRealtime = "vrrp.realtime"
	conditionJournal  = "vrrp.journal"
)

// What a condition of a router is about: the last part of its name.
const (
	aboutFault        = "fault"
	aboutDisagreement = "disagreement"
	aboutDuplicate    = "duplicate"
	aboutSend         = "send"
	aboutAddress      = "address"
	aboutLease        = "lease"
)

// conditions words what is wrong for the health board.
type conditions struct {
	board *health.Board
	log   *slog.Logger

	disagreeing map[string]map[netip.Addr]string // by router and peer; the loop's
}

func conditionOf(router, about string) string { return "vrrp." + router + "." + about }

func (c *conditions) clear(name string) { c.board.Clear(name) }

// state raises what a state means.
func (c *conditions) state(in *instance, now State, reason string) {
	name := conditionOf(in.settings.Name, aboutFault)
	if now != Fault {
		c.board.Clear(name)
		return
	}
	if in.spot.why != "" {
		reason = in.spot.why
	}
	c.board.Raise(name, health.Warning, fmt.Sprintf(
		"virtual router %s can't hold its addresses on this node: %s", in.settings.Name, reason))
}

// disagreement says what a peer's adverts say otherwise than we do, field by
// field; no fields end it, since it agrees or for the reason given. With several
// peers they are told together.
func (c *conditions) disagreement(in *instance, peer netip.Addr, fields []Disagreement, reason string) {
	router := in.settings.Name
	of := c.disagreeing[router]
	if of == nil {
		of = map[netip.Addr]string{}
		c.disagreeing[router] = of
	}
	if len(fields) == 0 {
		delete(of, peer)
		in.log.Info("a peer disagrees with us no longer", "peer", in.nodeName(peer), "reason", cmp.Or(reason, "it says what we say"))
	} else {
		var words []string
		for _, f := range fields {
			words = append(words, disagreementWords(f))
		}
		of[peer] = fmt.Sprintf("%s: %s", in.nodeName(peer), strings.Join(words, ", "))
	}
	name := conditionOf(router, aboutDisagreement)
	if len(of) == 0 {
		c.board.Clear(name)
		return
	}
	c.board.Raise(name, health.Error, fmt.Sprintf(
		"virtual router %s (VRID %d on %s): peers are configured otherwise, and two nodes may hold its addresses; make the files agree. %s",
		router, in.core.VRID, in.spot.link.Name, strings.Join(sortedByAddr(of), "; ")))
}

func disagreementWords(f Disagreement) string {
	switch {
	case f.Ours == "" && f.Theirs == "", f.Field == fieldPassword.String(): // which they are is nobody's to see
		return f.Field + " differs"
	default:
		return fmt.Sprintf("%s is %s there and %s here", f.Field, f.Theirs, f.Ours)
	}
}

// nodeName names a peer the way people do.
func (in *instance) nodeName(peer netip.Addr) string {
	if node := in.settings.Nodes[peer]; node != "" {
		return fmt.Sprintf("%s (%s)", node, peer)
	}
	return peer.String()
}

// duplicate says that another answers for an address that we hold.
func (c *conditions) duplicate(router string, addr netip.Addr, mac string) {
	c.board.Raise(conditionOf(router, aboutDuplicate), health.Error, fmt.Sprintf(
		"%s, an address of virtual router %s that this node holds, is answered for by %s, too: find who has that hardware address; we announce ours again until nobody else answers", addr, router, mac))
}

// send says that adverts can't be sent, and when they can again.
func (c *conditions) send(in *instance, err error) {
	name := conditionOf(in.settings.Name, aboutSend)
	if err == nil {
		in.log.Info("adverts are sent again")
		c.board.Clear(name)
		return
	}
	in.log.Warn("an advert could not be sent", "error", err)
	c.board.Raise(name, health.Error, fmt.Sprintf(
		"virtual router %s: adverts can't be sent on %s, so a peer will take the addresses while this node has them: %v; look for a firewall that drops protocol 112", in.settings.Name, in.spot.link.Name, err))
}

// address says that an address can't be put on its interface or taken off it;
// nil ends it.
func (c *conditions) address(router string, err error) {
	name := conditionOf(router, aboutAddress)
	if err == nil {
		c.board.Clear(name)
		return
	}
	c.board.Raise(name, health.Error, fmt.Sprintf("virtual router %s: %v; it is tried again every second", router, err))
}

// lease says that a fenced router is Active here and holds nothing, since it
// lacks its lease; record is what the store has.
func (c *conditions) lease(router string, lacks, storeless bool, record leaseRecord) {
	name := conditionOf(router, aboutLease)
	if !lacks {
		c.board.Clear(name)
		return
	}
	why := "the store does not take its writes; look whether it has a leader (holdfast raft list-peers)"
	switch {
	case storeless:
		why = "this unit has no store: a fenced address needs an agent that runs whole (holdfast agent)"
	case record.Node != "" && !record.Free:
		why = fmt.Sprintf("it is %s's, which renews it or had it until just now; if that node holds the address, the two do not hear each other's adverts (holdfast vip probe)", record.Node)
	}
	c.board.Raise(name, health.Error, fmt.Sprintf("virtual router %s is Active here and can't have its lease: %s", router, why))
}

func (c *conditions) realtime(priority int, err error) {
	c.log.Warn("no realtime thread", "priority", priority, "error", err)
	c.board.Raise(conditionRealtime, health.Warning, fmt.Sprintf(
		"adverts are sent on an ordinary thread, a busy machine may delay them: %v; give the unit LimitRTPRIO=%d, or take vrrp.realtime out of the cluster file", err, priority))
}

func (c *conditions) guard(err error) {
	if err == nil {
		c.board.Clear(conditionGuard)
		return
	}
	c.board.Raise(conditionGuard, health.Warning, fmt.Sprintf(
		"the guard does not run, so a crash of this process would leave addresses behind: %v; another is started by itself", err))
}

func (c *conditions) journal(err error) {
	if err == nil {
		c.board.Clear(conditionJournal)
		return
	}
	c.board.Raise(conditionJournal, health.Error, fmt.Sprintf(
		"which addresses are ours can't be written down, so a crash would leave them behind: %v", err))
}

// forget ends everything that was told about a router.
func (c *conditions) forget(router string) {
	delete(c.disagreeing, router)
	for _, about := range []string{aboutFault, aboutDisagreement, aboutDuplicate, aboutSend, aboutAddress, aboutLease} {
		c.board.Clear(conditionOf(router, about))
	}
}

// sortedByAddr gives the values of a map in the order of its addresses.
func sortedByAddr(m map[netip.Addr]string) []string {
	addrs := make([]netip.Addr, 0, len(m))
	for addr := range m {
		addrs = append(addrs, addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	texts := make([]string, len(addrs))
	for i, addr := range addrs {
		texts[i] = m[addr]
	}
	return texts
}

package vrrp

import (
	"net/netip"
	"slices"
	"time"

	"holdfast/internal/check"
)

// Settings are the cluster file's word for this node, understood: what
// config.go makes and service.go runs. Two Settings can be compared with
// reflect.DeepEqual; a reload touches only what differs.
type Settings struct {
	Routers  []RouterSettings   // those that this node is a member of, in the order of the file
	Checks   []check.Definition // probed by vrrp itself; ID is the Track.Name that it decides; each with its defaults
	Watches  []Watch            // the other tracks
	Hooks    Hooks              // of every router, beside its own
	Realtime int                // SCHED_FIFO priority of the advert thread, 1–99; 0: none
	Warnings []string           // what is worth a line in the log, such as a password that is cut
}

// RouterSettings is one virtual router with what the core need not know.
//
// Source is the node's address in the VIP's network, except for IPv6 by
// multicast, where RFC 9568 §5.1.2.2 wants the link-local address of the
// interface: the file does not know it, so Source is the zero Addr, and the
// service fills it in once it knows the interface. Peers stays empty then, and
// Nodes too: a peer's link-local address is not in the file.
type RouterSettings struct {
	Router // Interface "": the one that has Home, found again when links change

	Home     netip.Addr            // this node's own address in the network
	Network  string                // of the cluster file
	Nodes    map[netip.Addr]string // peers' primary addresses to node names, for what is told to people
	MinTTL   uint8                 // of adverts that are taken: 255 (RFC 9568 §5.1.1.3) unless said, for unicast
	Order    []string              // all members, who is to hold it first (placement)
	Announce Announcements
	Debounce time.Duration // how long the interface must be as it is before it counts (bonds)
	Lease    time.Duration // of a Fenced router: how long one renewal is good for
	Hooks    Hooks
}

// Announcements say how often neighbours are told where an address is.
type Announcements struct {
	Repeat  int           // bursts after becoming Active, 1–60; 5
	Every   time.Duration // between them; 1 s
	Refresh time.Duration // again for as long as it is Active; 0: never
}

// WatchKind is the kind of a tracked thing that is no check.
type WatchKind string

// The kinds.
const (
	WatchInterface WatchKind = "interface" // Target: its name; up while it runs
	WatchFile      WatchKind = "file"      // Target: a path; its number is added to the priority times Weight, keepalived's track_file
	WatchProcess   WatchKind = "process"   // Target: comm; up while at least one runs
)

// Watch is a tracked thing.
type Watch struct {
	Name   string // as in Track.Name
	Kind   WatchKind
	Target string
	Every  time.Duration // for what must be asked: files, processes
}

// Hooks are programs that are told of transitions, in order, one at a time for
// a router.
type Hooks struct {
	Notify  []string          // argv; keepalived's arguments are added: INSTANCE|GROUP NAME MASTER|BACKUP|FAULT|STOP PRIORITY
	Dirs    map[string]string // "master", "backup", "fault", "stop" to a run-parts directory (notify_master.d)
	User    string            // who they run as; "" : holdfast's own
	Timeout time.Duration     // of each program; 30 s
}

// Programs are the programs and the directories (which end with a slash) that
// the settings want run: what a command.Runner has to allow. Sorted.
func (s *Settings) Programs() []string {
	var list []string
	for i := range s.Checks {
		if len(s.Checks[i].Script) > 0 {
			list = append(list, s.Checks[i].Script[0])
		}
	}
	list = s.Hooks.programs(list)
	for i := range s.Routers {
		list = s.Routers[i].Hooks.programs(list)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (h *Hooks) programs(list []string) []string {
	if len(h.Notify) > 0 {
		list = append(list, h.Notify[0])
	}
	for _, dir := range h.Dirs {
		list = append(list, dir+"/")
	}
	return list
}

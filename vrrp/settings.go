package vrrp

import (
	"net/netip"
	"time"

	"holdfast/internal/check"
)

// Settings are the cluster file's word for this node, understood: what
// config.go makes and service.go runs. Two Settings can be compared with
// reflect.DeepEqual; a reload touches only what differs.
type Settings struct {
	Routers  []RouterSettings   // those that this node is a member of
	Checks   []check.Definition // what tracks of kind "check" refer to, by ID; probed by vrrp itself
	Watches  []Watch            // the other tracks
	Hooks    Hooks              // of every router
	Realtime int                // SCHED_FIFO priority of the advert thread; 0: none
}

// RouterSettings is one virtual router with what the core need not know.
type RouterSettings struct {
	Router // Interface "": the one that has Source, found again when links change

	Network  string                // of the cluster file
	Nodes    map[netip.Addr]string // peers' primary addresses to node names, for what is told to people
	Order    []string              // all members, who is to hold it first (placement)
	Announce Announcements
	Debounce time.Duration // how long the interface must be as it is before it counts (bonds)
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

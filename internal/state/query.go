package state

import (
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
)

// Snapshot is the state at one moment. It is immutable, may be kept, and may
// be read by any number of goroutines. None of its methods block.
type Snapshot struct {
	txn       *memdb.Txn // a read transaction: safe for concurrent use
	abandoned <-chan struct{}
	graves    graves
	gossip    *gossip
	index     uint64
	version   uint64
	touched   time.Time
}

// Index is the log index of the last command in the snapshot, 0 before the
// first. Commands that were refused count.
func (s *Snapshot) Index() uint64 { return s.index }

// Version counts every change this replica saw, those of the gossip too. It
// means nothing on another node or after a restart.
func (s *Snapshot) Version() uint64 { return s.version }

// Age is the time since a leader last confirmed this replica (Touch), never
// negative; ok is false when none ever did. It belongs to this snapshot: ask a
// fresh one.
func (s *Snapshot) Age(now time.Time) (age time.Duration, ok bool) {
	if s.touched.IsZero() {
		return 0, false
	}
	return max(0, now.Sub(s.touched)), true
}

// WatchSet collects channels that close when a query's answer may have
// changed. A nil WatchSet collects nothing.
//
// Queries return, beside the answer, the index at which it last changed:
// what a blocking query hands out as X-Consul-Index. It is never 0 and, for
// a query on one name, does not move when other names change.
//
// A watch fires on every change of the answer. It may fire without one, which
// the index then tells: when the tables are replaced by a Restore, when a name
// like an absent one appears for the first time (1 in 128), and, for a prefix
// of keys, when a neighbour of the prefix appears or the last one goes.
type WatchSet = memdb.WatchSet

// watch adds what fires when the answer about a subject changes, and returns
// the index at which it last did.
func (s *Snapshot) watch(ws WatchSet, about subject) uint64 {
	row, ch := firstWatch[indexRow](s.txn, tableIndex, "id", about.key())
	if row != nil {
		s.add(ws, ch)
		return row.Index
	}
	if ws != nil {
		_, ch = firstWatch[absence](s.txn, tableAbsence, "id", []byte{byte(about.aspect), bucketOf(about.name)})
		s.add(ws, ch)
	}
	return s.graves.floor(about.aspect)
}

func (s *Snapshot) add(ws WatchSet, ch <-chan struct{}) {
	ws.Add(ch)
	ws.Add(s.abandoned)
}

// Nodes lists all nodes by name.
func (s *Snapshot) Nodes(ws WatchSet) ([]*Node, uint64) {
	index := s.watch(ws, subject{ofTable, allNodes})
	return list[Node](s.txn, string(TableNode), "id", nil), index
}

// Node finds a node by its name, without regard to case; nil when absent.
func (s *Snapshot) Node(ws WatchSet, name string) (*Node, uint64) {
	name = Fold(name)
	node, ch := firstWatch[Node](s.txn, string(TableNode), "id", key(name))
	if node == nil {
		return nil, s.watch(ws, subject{ofNode, name})
	}
	s.add(ws, ch)
	return node, node.ModifyIndex
}

// ServiceNames maps every service's name to the union of its tags, sorted. Of
// several spellings of a name it has the one of the first instance.
func (s *Snapshot) ServiceNames(ws WatchSet) (map[string][]string, uint64) {
	index := s.watch(ws, subject{ofTable, allNames})
	names := map[string][]string{}
	services := list[Service](s.txn, string(TableService), "name", nil)
	for len(services) > 0 {
		n := 1
		for n < len(services) && Fold(services[n].Name) == Fold(services[0].Name) {
			n++
		}
		names[services[0].Name] = tagUnion(services[:n])
		services = services[n:]
	}
	return names, index
}

// tagUnion is never nil, so that it differs from that of a service that is
// not there.
func tagUnion(services []*Service) []string {
	tags := []string{}
	for _, s := range services {
		tags = append(tags, s.Tags...)
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// Instances lists the instances of a service (name compared without regard
// to case) by node and ID, whatever their health. An instance's checks are
// those of its node, then its own, each by ID.
func (s *Snapshot) Instances(ws WatchSet, service string) ([]Instance, uint64) {
	service = Fold(service)
	index := s.watch(ws, subject{ofInstances, service})
	services := list[Service](s.txn, string(TableService), "name", key(service))
	instances := make([]Instance, 0, len(services))
	for _, svc := range services {
		node := Fold(svc.Node)
		instances = append(instances, Instance{
			Node:    first[Node](s.txn, string(TableNode), "id", key(node)),
			Service: svc,
			Checks:  append(checksOf(s.txn, node, ""), checksOf(s.txn, node, svc.ID)...),
		})
	}
	return instances, index
}

// checksOf lists the checks of a service, or with an empty ID those of the
// node itself.
func checksOf(txn *memdb.Txn, node, service string) []*Check {
	return list[Check](txn, string(TableCheck), "service", key(node, service))
}

// NodeServices lists the services of a node by ID.
func (s *Snapshot) NodeServices(ws WatchSet, node string) ([]*Service, uint64) {
	node = Fold(node)
	index := s.watch(ws, subject{ofNodeServices, node})
	return list[Service](s.txn, string(TableService), "id", key(node)), index
}

// NodeChecks lists all checks of a node by ID: its own and its services'.
func (s *Snapshot) NodeChecks(ws WatchSet, node string) ([]*Check, uint64) {
	node = Fold(node)
	index := s.watch(ws, subject{ofNodeChecks, node})
	return list[Check](s.txn, string(TableCheck), "id", key(node)), index
}

// ServiceChecks lists the checks of all instances of a service by node and ID,
// without those of the nodes.
func (s *Snapshot) ServiceChecks(ws WatchSet, service string) ([]*Check, uint64) {
	service = Fold(service)
	index := s.watch(ws, subject{ofServiceChecks, service})
	return list[Check](s.txn, string(TableCheck), "name", key(service)), index
}

// Checks lists all checks in a state by node and ID; "" is any.
func (s *Snapshot) Checks(ws WatchSet, status Status) ([]*Check, uint64) {
	if status == "" {
		index := s.watch(ws, subject{ofTable, allChecks})
		return list[Check](s.txn, string(TableCheck), "id", nil), index
	}
	index := s.watch(ws, subject{ofStatus, string(status)})
	return list[Check](s.txn, string(TableCheck), "status", key(string(status))), index
}

// Entry finds a key; nil when absent.
func (s *Snapshot) Entry(ws WatchSet, key string) (*Entry, uint64) {
	entry, ch := firstWatch[Entry](s.txn, string(TableKV), "id", []byte(key))
	if entry == nil {
		return nil, s.watch(ws, subject{ofEntry, key})
	}
	s.add(ws, ch)
	return entry, entry.ModifyIndex
}

// Entries lists the keys with a prefix, sorted.
func (s *Snapshot) Entries(ws WatchSet, prefix string) ([]*Entry, uint64) {
	entries, ch := listWatch[Entry](s.txn, string(TableKV), "id_prefix", []byte(prefix))
	if len(entries) == 0 && strings.HasSuffix(prefix, "/") {
		s.watch(ws, subject{ofPrefix, prefix}) // ch would fire for every neighbour
	} else {
		s.add(ws, ch)
	}
	index := s.graves.floor(ofEntry)
	for _, e := range entries {
		index = max(index, e.ModifyIndex)
	}
	for _, r := range list[indexRow](s.txn, tableIndex, "id_prefix", subject{ofEntry, prefix}.key()) {
		index = max(index, r.Index)
	}
	return entries, index
}

// Document finds a document; nil when absent.
func (s *Snapshot) Document(ws WatchSet, kind, key string) (*Document, uint64) {
	d := &Document{Kind: kind, Key: key}
	doc, ch := firstWatch[Document](s.txn, string(TableDocument), "id", documentKey(d))
	if doc == nil {
		return nil, s.watch(ws, d.subject())
	}
	s.add(ws, ch)
	return doc, doc.ModifyIndex
}

func (d *Document) subject() subject { return subject{ofDocument, string(documentKey(d))} }

// Documents lists the documents of a kind by key.
func (s *Snapshot) Documents(ws WatchSet, kind string) ([]*Document, uint64) {
	index := s.watch(ws, subject{ofKind, kind})
	return list[Document](s.txn, string(TableDocument), "id", key(kind)), index
}

// Cluster is the record about the store; nil until it is formed.
func (s *Snapshot) Cluster() *Cluster {
	return first[Cluster](s.txn, string(TableCluster), "id", key("cluster"))
}

package state

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"
)

// tx is one command under way: the rows it writes, and what it touches. The
// transaction of the database is shared with other commands of a batch.
type tx struct {
	txn    *memdb.Txn
	index  uint64
	writes int // rows written or removed
	// base is the state before the transaction, and entries the keys that were
	// written since, nil for a removed one: see entry.
	base    *memdb.Txn
	entries map[string]*Entry
	graves  graves
	changed map[Key]struct{}     // for Since
	touched map[subject]struct{} // answers that changed
	// tags holds, for every service name of which an instance came, went
	// or changed its tags, what ServiceNames said of it before; nil for
	// nothing.
	tags     map[string][]string
	outcomes []Outcome // of a transaction
}

// insert writes a row, and delete removes one that is there. All of a command's
// writes go through them, so that it is known whether it made any.
func (t *tx) insert(table string, row any) {
	t.writes++
	if e, ok := row.(*Entry); ok {
		t.entries[e.Key] = e
	}
	must(t.txn.Insert(table, row))
}

func (t *tx) delete(table string, row any) {
	t.writes++
	if e, ok := row.(*Entry); ok {
		t.entries[e.Key] = nil
	}
	must(t.txn.Delete(table, row))
}

// entry finds a key as it is now. To ask the transaction would make go-memdb copy
// the nodes anew that it has copied for the commands before.
func (t *tx) entry(key string) *Entry {
	if e, written := t.entries[key]; written {
		return e
	}
	return first[Entry](t.base, string(TableKV), "id", []byte(key))
}

// below tells whether there is a key that begins with dir now. As in entry, the
// transaction is asked only when what was there before does not tell.
func (t *tx) below(dir string) bool {
	if before := first[Entry](t.base, string(TableKV), "id_prefix", []byte(dir)); before != nil {
		if now, written := t.entries[before.Key]; !written || now != nil {
			return true
		}
	}
	return first[Entry](t.txn, string(TableKV), "id_prefix", []byte(dir)) != nil
}

func (t *tx) node(name string) *Node {
	return first[Node](t.txn, string(TableNode), "id", key(Fold(name)))
}

func (t *tx) service(node, id string) *Service {
	return first[Service](t.txn, string(TableService), "id", key(Fold(node), id))
}

func (t *tx) check(node, id string) *Check {
	return first[Check](t.txn, string(TableCheck), "id", key(Fold(node), id))
}

func (t *tx) servicesOf(node string) []*Service {
	return list[Service](t.txn, string(TableService), "id", key(Fold(node)))
}

func (t *tx) servicesNamed(name string) []*Service {
	return list[Service](t.txn, string(TableService), "name", key(Fold(name)))
}

func (t *tx) mark(table Table, name string) { t.changed[Key{table, name}] = struct{}{} }

func (t *tx) touch(a aspect, name string) { t.touched[subject{a, name}] = struct{}{} }

// touchInstances says that what Instances answers for a service changed.
func (t *tx) touchInstances(service string) {
	t.touch(ofInstances, Fold(service))
	t.mark(TableService, Fold(service))
}

// touchNode says that the row of a node changed, and so its instances.
func (t *tx) touchNode(node string) {
	t.touch(ofTable, allNodes)
	t.mark(TableNode, Fold(node))
	for _, svc := range t.servicesOf(node) {
		t.touchInstances(svc.Name)
	}
}

// putNode writes a node unless it is equal to what is stored, and returns the
// row. The first spelling of a name stays, and so does the ID when the new row
// has none.
func (t *tx) putNode(n *Node) *Node {
	n.CreateIndex, n.ModifyIndex = t.index, t.index
	old := t.node(n.Name)
	if old == nil {
		t.insert(string(TableNode), n)
		t.unbury(subject{ofNode, Fold(n.Name)})
		t.touch(ofNodeServices, Fold(n.Name))
		t.touch(ofNodeChecks, Fold(n.Name))
		t.touchNode(n.Name)
		return n
	}
	n.Name, n.CreateIndex = old.Name, old.CreateIndex
	n.ID = cmp.Or(n.ID, old.ID)
	if equalNode(old, n) {
		return old
	}
	t.insert(string(TableNode), n)
	t.touchNode(n.Name)
	return n
}

func (t *tx) deleteNode(n *Node) {
	for _, svc := range t.servicesOf(n.Name) {
		t.deleteService(svc)
	}
	for _, chk := range list[Check](t.txn, string(TableCheck), "id", nodeKey(n)) {
		t.deleteCheck(chk)
	}
	t.delete(string(TableNode), n)
	t.endSessionsOf(n.Name)
	t.touchNode(n.Name)
	t.touch(ofNode, Fold(n.Name))
	t.touch(ofNodeServices, Fold(n.Name))
	t.touch(ofNodeChecks, Fold(n.Name))
}

// putService writes a service unless it is equal to what is stored. Its checks
// still have its former name and tags then: see moveChecks.
func (t *tx) putService(s *Service) {
	s.CreateIndex, s.ModifyIndex = t.index, t.index
	old := t.service(s.Node, s.ID)
	if old != nil {
		if equalService(old, s) {
			return
		}
		s.CreateIndex = old.CreateIndex
		t.touchService(old)
	}
	t.rememberTags(s.Name)
	t.insert(string(TableService), s)
	t.touchService(s)
}

// moveChecks gives the checks of a service its name and tags. It comes after
// the command's own checks, so that one which goes to another service at the
// same time is not seen to come and go here.
func (t *tx) moveChecks(s *Service) {
	for _, chk := range checksOf(t.txn, Fold(s.Node), s.ID) {
		moved := *chk
		moved.ServiceName, moved.ServiceTags = s.Name, s.Tags
		t.writeCheck(chk, &moved)
	}
}

// touchService says that a service row comes, goes or changes. For one that is
// stored it is called before the write.
func (t *tx) touchService(s *Service) {
	t.rememberTags(s.Name)
	t.touch(ofNodeServices, Fold(s.Node))
	t.touchInstances(s.Name)
}

// rememberTags keeps what ServiceNames says of a name before the command.
func (t *tx) rememberTags(name string) {
	name = Fold(name)
	if _, ok := t.tags[name]; ok {
		return
	}
	t.tags[name] = nil
	if services := t.servicesNamed(name); len(services) > 0 {
		t.tags[name] = nameEntry(services)
	}
}

// nameEntry is what ServiceNames has for a name: its spelling and its tags.
func nameEntry(services []*Service) []string {
	return append([]string{services[0].Name}, tagUnion(services)...)
}

func (t *tx) deleteService(s *Service) {
	t.touchService(s)
	for _, chk := range checksOf(t.txn, Fold(s.Node), s.ID) {
		t.deleteCheck(chk)
	}
	t.delete(string(TableService), s)
}

func (t *tx) putCheck(c *Check) error {
	if c.ServiceID != "" {
		svc := t.service(c.Node, c.ServiceID)
		if svc == nil {
			return invalid("check %q of node %q speaks of service %.64q, which is not there", c.ID, c.Node, c.ServiceID)
		}
		c.ServiceName, c.ServiceTags = svc.Name, svc.Tags
	}
	t.writeCheck(t.check(c.Node, c.ID), c)
	return nil
}

// writeCheck stores c in place of old (nil: a new one) unless they are equal.
func (t *tx) writeCheck(old, c *Check) {
	c.CreateIndex, c.ModifyIndex = t.index, t.index
	if old != nil {
		if equalCheck(old, c) {
			return
		}
		c.CreateIndex = old.CreateIndex
		t.touchCheck(old)
	}
	t.insert(string(TableCheck), c)
	t.touchCheck(c)
	if c.Status == Critical {
		t.endSessionsWith(c)
	}
}

func (t *tx) deleteCheck(c *Check) {
	t.touchCheck(c)
	t.delete(string(TableCheck), c)
	t.endSessionsWith(c)
}

// touchCheck says that a check came, went or changed: all answers it is in.
func (t *tx) touchCheck(c *Check) {
	t.touch(ofTable, allChecks)
	t.touch(ofNodeChecks, Fold(c.Node))
	t.touch(ofStatus, string(c.Status))
	t.mark(TableCheck, Fold(c.Node))
	if c.ServiceID != "" {
		t.touch(ofServiceChecks, Fold(c.ServiceName))
		t.touchInstances(c.ServiceName)
		return
	}
	for _, svc := range t.servicesOf(c.Node) {
		t.touchInstances(svc.Name)
	}
}

// putEntry writes a key. What a lock put there stays. An equal entry is left
// alone unless always: of several CAS on one index exactly one may succeed,
// also when they write the same.
func (t *tx) putEntry(old, e *Entry, always bool) {
	e.LockIndex, e.Session = 0, ""
	if old != nil {
		e.LockIndex, e.Session = old.LockIndex, old.Session
		if !always && equalEntry(old, e) {
			return
		}
	}
	t.storeEntry(old, e)
}

// storeEntry writes a key in place of old (nil: a new one).
func (t *tx) storeEntry(old, e *Entry) {
	e.CreateIndex, e.ModifyIndex = t.index, t.index
	if old != nil {
		e.CreateIndex = old.CreateIndex
	} else {
		t.unbury(subject{ofEntry, e.Key})
		t.fillDirectories(e.Key)
	}
	t.insert(string(TableKV), e)
	t.mark(TableKV, e.Key)
}

// fillDirectories wakes who waits for the first key below a directory, the
// innermost first. A directory that has a key fills those around it too.
func (t *tx) fillDirectories(key string) {
	for end := len(key); end > 0; {
		end = strings.LastIndexByte(key[:end], '/')
		dir := key[:end+1]
		if dir == "" || t.below(dir) {
			return
		}
		t.wakeAbsent(subject{ofPrefix, dir})
	}
}

func (t *tx) deleteEntry(e *Entry) {
	t.delete(string(TableKV), e)
	t.touch(ofEntry, e.Key)
	t.mark(TableKV, e.Key)
}

func (t *tx) putDocument(old, d *Document, always bool) {
	d.CreateIndex, d.ModifyIndex = t.index, t.index
	if old != nil {
		d.CreateIndex = old.CreateIndex
		if !always && equalDocument(old, d) {
			return
		}
	} else {
		t.unbury(d.subject())
	}
	t.insert(string(TableDocument), d)
	t.touchDocument(d)
}

func (t *tx) deleteDocument(d *Document) {
	t.delete(string(TableDocument), d)
	t.touch(ofDocument, d.subject().name)
	t.touchDocument(d)
}

func (t *tx) touchDocument(d *Document) {
	t.touch(ofKind, d.Kind)
	t.mark(TableDocument, d.Kind+"/"+d.Key)
}

// finish writes the index of every answer that changed.
func (t *tx) finish() {
	for name, before := range t.tags {
		var after []string
		if services := t.servicesNamed(name); len(services) > 0 {
			after = nameEntry(services)
		} else {
			t.entomb(subject{ofServiceChecks, name})
		}
		if !slices.Equal(before, after) {
			t.touch(ofTable, allNames)
		}
	}
	if len(t.touched) > 0 { // a put touches nothing
		t.touchAll()
	}
	for a := ofTable; a < aspects; a++ {
		t.reap(a)
	}
}

// touchAll writes the index of every answer that was touched.
func (t *tx) touchAll() {
	for _, s := range slices.SortedFunc(maps.Keys(t.touched), compareSubjects) {
		if t.alive(s) {
			t.bump(s)
		} else {
			t.bury(s)
		}
	}
}

func compareSubjects(a, b subject) int { return bytes.Compare(a.key(), b.key()) }

// alive tells whether a subject can change again without coming back first.
func (t *tx) alive(s subject) bool {
	switch s.aspect {
	case ofInstances, ofServiceChecks:
		return len(t.servicesNamed(s.name)) > 0
	case ofNodeServices, ofNodeChecks:
		return t.node(s.name) != nil
	case ofKind:
		return first[Document](t.txn, string(TableDocument), "id_prefix", key(s.name)) != nil
	case ofSession:
		return t.session(s.name) != nil
	case ofNodeSessions:
		return first[Session](t.txn, string(TableSession), "node", key(s.name)) != nil
	case ofNode, ofEntry, ofDocument:
		return false // touched only when deleted
	default:
		return true
	}
}

package state

import (
	"bytes"
	"fmt"
)

// Apply carries out cmd as entry index of the log, which is greater than that
// of any command before it. The error is the command's result (ErrConflict,
// ErrInvalid wrapped with the reason), the same on every replica; a command
// with an error has changed nothing but Snapshot.Index. Apply never reads a
// clock. It keeps cmd for a while (Committed): nobody may change it any more.
func (s *Store) Apply(index uint64, cmd Command) error {
	one := [1]Batched{{Index: index, Cmd: cmd}}
	s.ApplyBatch(one[:])
	return one[0].Err
}

func (t *tx) apply(cmd Command) error {
	switch c := cmd.(type) {
	case Register:
		return t.register(c)
	case Deregister:
		return t.deregister(c)
	case UpdateCheck:
		return t.updateCheck(c)
	case KV:
		return t.kv(c)
	case PutDocument:
		return t.document(c)
	case SetCluster:
		return t.cluster(c)
	case CreateSession:
		return t.createSession(c)
	case DestroySession:
		return t.destroySession(c)
	case RenewSession:
		return t.renewSession(c)
	case EndDelay:
		return t.endDelay(c)
	case Transact:
		return t.transact(c)
	}
	return t.future(cmd)
}

func (t *tx) register(c Register) error {
	n, err := cleanNode(c.Node)
	if err != nil {
		return err
	}
	node := t.putNode(n)
	var services []*Service
	for _, s := range c.Services {
		svc, err := cleanService(node, s)
		if err != nil {
			return err
		}
		t.putService(svc)
		services = append(services, svc)
	}
	for _, c := range c.Checks {
		chk, err := cleanCheck(node, c)
		if err != nil {
			return err
		}
		if err := t.putCheck(chk); err != nil {
			return err
		}
	}
	for _, svc := range services {
		t.moveChecks(svc)
	}
	return nil
}

func (t *tx) deregister(c Deregister) error {
	if err := checkName("node name", c.Node); err != nil {
		return err
	}
	node := t.node(c.Node)
	if node == nil || c.NodeID != "" && c.NodeID != node.ID {
		return nil
	}
	for _, id := range c.Services {
		if svc := t.service(node.Name, id); svc != nil {
			t.deleteService(svc)
		}
	}
	for _, id := range c.Checks {
		if chk := t.check(node.Name, id); chk != nil {
			t.deleteCheck(chk)
		}
	}
	if len(c.Services) == 0 && len(c.Checks) == 0 {
		t.deleteNode(node)
	}
	return nil
}

func (t *tx) updateCheck(c UpdateCheck) error {
	if err := checkName("node name", c.Node); err != nil {
		return err
	}
	for _, u := range c.Updates {
		if err := checkStatus(fmt.Sprintf("check %.64q of node %q", u.ID, c.Node), u.Status); err != nil {
			return err
		}
		old := t.check(c.Node, u.ID)
		if old == nil {
			continue
		}
		chk := *old
		chk.Status, chk.Output = u.Status, cutOutput(u.Output)
		t.writeCheck(old, &chk)
	}
	return nil
}

func (t *tx) kv(c KV) error {
	e := c.Entry
	if e.Key == "" && c.Verb != DeleteTree {
		return invalid("key is empty")
	}
	what := func() string { return fmt.Sprintf("key %q", e.Key) } // for errors alone: most commands are fine
	if err := checkBytes("key", what, e.Key, e.Value); err != nil {
		return err
	}
	if c.Verb == DeleteTree {
		for _, old := range list[Entry](t.txn, string(TableKV), "id_prefix", []byte(e.Key)) {
			t.deleteEntry(old)
		}
		return nil
	}
	old := t.entry(e.Key)
	var at uint64
	if old != nil {
		at = old.ModifyIndex
	}
	if err := checkVerb(c.Verb, what, at, e.ModifyIndex, true); err != nil {
		return err
	}
	e.Value = bytes.Clone(e.Value)
	switch c.Verb {
	case Set, CAS:
		t.putEntry(old, &e, c.Verb == CAS)
	case Acquire:
		return t.acquire(old, &e)
	case Release:
		return t.release(old, &e)
	default:
		if old != nil {
			t.deleteEntry(old)
		}
	}
	return nil
}

// checkVerb refuses an unknown verb and, for the compare-and-set ones, an
// entry that is not the one the writer saw. Indexes are 0 for what is not
// there; locks tells whether the entry can be held.
func checkVerb(v Verb, what func() string, stored, expected uint64, locks bool) error {
	switch v {
	case Set, Delete:
		return nil
	case Acquire, Release:
		if locks {
			return nil
		}
	case CAS, DeleteCAS:
		if stored == expected {
			return nil
		}
		if stored == 0 {
			return fmt.Errorf("%w: %s is not there, instead of at index %d", ErrConflict, what(), expected)
		}
		if expected == 0 {
			return fmt.Errorf("%w: %s is there already, at index %d", ErrConflict, what(), stored)
		}
		return fmt.Errorf("%w: %s is at index %d, not %d", ErrConflict, what(), stored, expected)
	}
	return invalid("%s: verb %.32q is unknown here", what(), v)
}

func (t *tx) document(c PutDocument) error {
	d := c.Document
	if err := checkName("kind of the document", d.Kind); err != nil {
		return err
	}
	what := func() string { return fmt.Sprintf("document %q of kind %q", d.Key, d.Kind) }
	if d.Key == "" {
		return invalid("%s: key is empty", what())
	}
	if err := checkBytes("key of the document", what, d.Key, d.Value); err != nil {
		return err
	}
	old := first[Document](t.txn, string(TableDocument), "id", documentKey(&d))
	var at uint64
	if old != nil {
		at = old.ModifyIndex
	}
	if err := checkVerb(c.Verb, what, at, d.ModifyIndex, false); err != nil {
		return err
	}
	switch c.Verb {
	case Set, CAS:
		d.Value = bytes.Clone(d.Value)
		t.putDocument(old, &d, c.Verb == CAS)
	default:
		if old != nil {
			t.deleteDocument(old)
		}
	}
	return nil
}

func (t *tx) cluster(c SetCluster) error {
	next := c.Cluster
	if err := checkName("ID of the cluster", next.ID); err != nil {
		return err
	}
	if len(next.Name) > MaxName {
		return invalid("name of the cluster has %d bytes, more than %d", len(next.Name), MaxName)
	}
	if next.Feature < 0 {
		return invalid("feature level %d is negative", next.Feature)
	}
	next.CreateIndex, next.ModifyIndex = t.index, t.index
	if old := first[Cluster](t.txn, string(TableCluster), "id", key("cluster")); old != nil {
		switch {
		case next.ID != old.ID:
			return fmt.Errorf("%w: the store belongs to cluster %s, not %s", ErrConflict, old.ID, next.ID)
		case next.Feature < old.Feature:
			return fmt.Errorf("%w: the feature level is %d already and can't sink to %d", ErrConflict, old.Feature, next.Feature)
		case next.Feature == old.Feature:
			return nil
		}
		next.Name, next.CreateIndex = old.Name, old.CreateIndex
	}
	t.insert(string(TableCluster), &next)
	t.mark(TableCluster, "")
	return nil
}

package state

import "fmt"

// Batched is one command of a batch, and what came of it.
type Batched struct {
	Index uint64 // of the entry in the log
	Cmd   Command
	Err   error // set by ApplyBatch: the command's result, as Apply returns it

	changed  bool      // something, and not only Snapshot.Index
	outcomes []Outcome // of a transaction
}

// maxBatchWrites is after how many written rows a batch is published, and goes on
// in another transaction: go-memdb tracks some 8000 tree nodes of one, and beyond
// them compares whole tables to find out whom to wake.
const maxBatchWrites = 1024

// ApplyBatch carries out commands in their order, as Apply does each: with the
// same results, indexes, rows and watches. Their indexes rise, and are greater
// than that of any command before them. It is cheaper, since the commands share a
// transaction of the database, and readers see the state behind all of them next:
// at no index between, unless the batch writes more than 1024 rows or has a
// command that is refused when it has written already, where it is published in
// parts, each complete up to its index.
func (s *Store) ApplyBatch(batch []Batched) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.view.Load().snapshot.index
	for i := range batch {
		if batch[i].Index <= last {
			panic(fmt.Sprintf("state: entry %d applied after entry %d", batch[i].Index, last))
		}
		last = batch[i].Index
	}
	for len(batch) > 0 {
		batch = batch[s.applySome(batch):]
	}
}

// applySome carries out the first commands of a batch, publishes them and
// returns how many they were. The caller holds mu.
func (s *Store) applySome(batch []Batched) int {
	r := s.run(batch)
	// After a commit it does nothing. After a panic nothing of the run is seen.
	defer func() { r.tx.txn.Abort() }()
	n := r.done
	if r.spoiled {
		// What the last one wrote can't be taken back alone. The others are
		// carried out again, which gives the same.
		r.tx.txn.Abort()
		if r = s.run(batch[:n-1]); r.spoiled || r.done != n-1 {
			panic(fmt.Sprintf("state: entry %d gave something else when it was carried out again", batch[r.done-1].Index))
		}
	}
	next := *s.view.Load().snapshot
	next.index = batch[n-1].Index
	if len(r.changed) > 0 {
		s.swap.Lock()
		defer s.swap.Unlock()
		r.tx.txn.Commit()
		s.graves = r.tx.graves
		next.graves, next.txn = s.graves, s.db.Txn(false)
	}
	// Before the view: who sees the new index must find the commands up to it.
	for i := range batch[:n] {
		b := &batch[i]
		if b.outcomes != nil {
			s.outcomes.keep(b.Index, b.outcomes)
		}
		if b.changed {
			s.committed.keep(b.Index, b.Cmd)
		} else {
			s.committed.pass(b.Index)
		}
	}
	s.publish(next, r.changed)
	return n
}

// run is a transaction of the database under way, with the commands of a batch
// that were carried out in it.
type run struct {
	tx      tx  // of the command at hand; its graves are those behind the last one
	done    int // commands, with the one that spoiled the run
	spoiled bool
	writes  int
	changed map[Key]struct{} // by all of them; nil: nothing
}

// run carries out commands until they are done, have written maxBatchWrites rows,
// or one leaves writes behind that may not stay, which spoils the run.
func (s *Store) run(batch []Batched) *run {
	r := &run{tx: tx{
		txn:     s.db.Txn(true),
		graves:  s.graves,
		base:    s.view.Load().snapshot.txn,
		entries: map[string]*Entry{},
		touched: map[subject]struct{}{},
		tags:    map[string][]string{},
	}}
	finished := false
	defer func() {
		if !finished {
			r.tx.txn.Abort() // a panic: or the database would be locked for ever
		}
	}()
	for r.done < len(batch) && r.writes < maxBatchWrites && !r.spoiled {
		r.carryOut(&batch[r.done])
		r.done++
	}
	finished = true
	return r
}

func (r *run) carryOut(b *Batched) {
	t := &r.tx
	t.index, t.writes, t.outcomes = b.Index, 0, nil
	clear(t.touched)
	clear(t.tags)
	if clear(t.changed); t.changed == nil {
		t.changed = map[Key]struct{}{}
	}
	b.Err = t.apply(b.Cmd)
	b.changed, b.outcomes = false, nil
	if b.Err == nil {
		b.changed, b.outcomes = len(t.changed) > 0, t.outcomes
	}
	if !b.changed {
		r.spoiled = t.writes > 0 // without a write no tombstone was counted either
		return
	}
	t.finish()
	r.writes += t.writes
	if r.changed == nil {
		r.changed, t.changed = t.changed, nil
		return
	}
	for k := range t.changed {
		r.changed[k] = struct{}{}
	}
}

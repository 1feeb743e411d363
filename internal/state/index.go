package state

// maxGraves is how many tombstones of an aspect are kept: so many names can
// have vanished most recently and still have an index of their own.
const maxGraves = 4096

// graves counts the tombstones, by aspect.
type graves [aspects]grave

type grave struct {
	count int
	// floor is the greatest index among the tombstones that were reaped:
	// an absent name that has no row may have been one of them, and its
	// index must not go back.
	floorIndex uint64
}

// floor is the index of an answer about a subject that has no row: at least 1.
func (g *graves) floor(a aspect) uint64 { return max(1, g[a].floorIndex) }

func (t *tx) row(s subject) *indexRow {
	return first[indexRow](t.txn, tableIndex, "id", s.key())
}

// bump records that the answer about s changed with this command.
func (t *tx) bump(s subject) {
	t.arrive(s)
	t.insert(tableIndex, &indexRow{Aspect: s.aspect, Name: s.name, Index: t.index})
}

// arrive accounts for a subject that is about to get a live row, and returns the
// one that it has; nil: none.
func (t *tx) arrive(s subject) *indexRow {
	row := t.row(s)
	switch {
	case row == nil:
		t.wakeAbsent(s)
	case row.Dead:
		t.graves[s.aspect].count--
	}
	return row
}

// bury leaves a tombstone: the subject is gone since this command.
func (t *tx) bury(s subject) {
	row := t.row(s)
	if row == nil {
		t.wakeAbsent(s)
	}
	if row == nil || !row.Dead {
		t.graves[s.aspect].count++
	}
	t.insert(tableIndex, &indexRow{Aspect: s.aspect, Name: s.name, Index: t.index, Dead: true})
}

// entomb makes the row of a subject that this command did not touch a
// tombstone with its old index: its name is gone, but the answer was empty
// before and still is.
func (t *tx) entomb(s subject) {
	row := t.row(s)
	if _, touched := t.touched[s]; touched || row == nil || row.Dead {
		return
	}
	dead := *row
	dead.Dead = true
	t.insert(tableIndex, &dead)
	t.graves[s.aspect].count++
}

// unbury removes the tombstone of a subject whose row is in a table again.
func (t *tx) unbury(s subject) {
	delete(t.touched, s) // deleted earlier in the same command
	if row := t.arrive(s); row != nil {
		t.delete(tableIndex, row)
	}
}

// wakeAbsent wakes who watches for a subject that had no row.
func (t *tx) wakeAbsent(s subject) {
	t.insert(tableAbsence, &absence{s.aspect, bucketOf(s.name)})
}

// reap removes the oldest tombstones beyond maxGraves. Which ones they are
// follows from the log alone: by index, then by name.
func (t *tx) reap(a aspect) {
	g := &t.graves[a]
	if g.count <= maxGraves {
		return
	}
	it, err := t.txn.Get(tableIndex, "dead", []byte{byte(a)})
	must(err)
	for ; g.count > maxGraves; g.count-- {
		row := it.Next().(*indexRow)
		t.delete(tableIndex, row)
		g.floorIndex = max(g.floorIndex, row.Index)
	}
}

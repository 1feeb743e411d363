package state

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// Part is what of the state a unit of its own may see: the catalog, the record
// about the store, and the documents of some kinds. Keys, sessions, lock-delays
// and all other documents are withheld, and their names with them.
//
// No command on what is withheld changes what is in a part, so that a part
// that is restored and then given the commands that it includes stays equal to
// the part of the whole.
type Part struct {
	Kinds []string // of documents
}

// Includes tells whether a command changes what is in the part.
func (p Part) Includes(cmd Command) bool {
	switch c := cmd.(type) {
	case Register, Deregister, UpdateCheck, SetCluster:
		return true
	case PutDocument:
		return slices.Contains(p.Kinds, c.Document.Kind)
	}
	return false
}

// subject tells whether the index of an answer is in the part.
func (p Part) subject(s subject) bool {
	switch s.aspect {
	case ofTable:
		return s.name != allSessions
	case ofInstances, ofServiceChecks, ofNode, ofNodeServices, ofNodeChecks, ofStatus:
		return true
	case ofKind:
		return slices.Contains(p.Kinds, s.name)
	case ofDocument:
		kind, _, _ := strings.Cut(s.name, "\x00")
		return slices.Contains(p.Kinds, kind)
	}
	return false
}

// WritePart writes what is in a part, in the format of WriteTo: Restore reads
// it.
func (s *Snapshot) WritePart(w io.Writer, p Part) error {
	out := newRecordWriter(w)
	out.header(s.index)
	writeRows[Cluster](out, s.txn, tagCluster, TableCluster)
	writeRows[Node](out, s.txn, tagNode, TableNode)
	writeRows[Service](out, s.txn, tagService, TableService)
	writeRows[Check](out, s.txn, tagCheck, TableCheck)
	writeSome(out, s.txn, tagDocument, TableDocument, func(d *Document) bool { return slices.Contains(p.Kinds, d.Kind) })
	writeSome(out, s.txn, tagIndex, tableIndex, func(r *indexRow) bool { return p.subject(r.subject()) })
	for a := ofTable; a < aspects; a++ {
		if f := s.graves[a].floorIndex; f > 0 && p.subject(subject{aspect: a}) {
			out.record(tagFloor, &floorRow{a, f})
		}
	}
	out.trailer()
	if err := out.close(); err != nil {
		return fmt.Errorf("state: write a part: %w", err)
	}
	return nil
}

// Committed is a command that changed something, as Apply was given it.
type Committed struct {
	Index uint64
	Cmd   Command // shared: not to be changed
}

// committedSize is how many commands Committed can look back on, and
// committedBytes how large they may be together, by a rough count.
const (
	committedSize  = 4096
	committedBytes = 8 << 20
)

// committed keeps the latest commands on what a part can have.
type committed struct {
	mu       sync.Mutex
	epoch    uint64 // counts the times that the tables were replaced
	floor    uint64 // commands up to this index are no longer complete
	last     uint64 // the last that was applied, of any kind
	commands []Committed
	bytes    int
}

// keep notes a command that was applied.
func (l *committed) keep(index uint64, cmd Command) {
	size := sizeOf(cmd)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = index
	if size == 0 {
		return
	}
	l.commands, l.bytes = append(l.commands, Committed{index, cmd}), l.bytes+size
	if len(l.commands) <= committedSize && l.bytes <= committedBytes {
		return
	}
	drop := 0 // a quarter: not one at each command
	for ; drop < len(l.commands) && (len(l.commands)-drop > committedSize/4*3 || l.bytes > committedBytes/4*3); drop++ {
		l.floor, l.bytes = l.commands[drop].Index, l.bytes-sizeOf(l.commands[drop].Cmd)
	}
	l.commands = slices.Delete(l.commands, 0, drop)
}

// pass notes that a command changed nothing.
func (l *committed) pass(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = index
}

// reset starts anew: the tables were replaced by those at index.
func (l *committed) reset(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch++
	l.floor, l.last, l.commands, l.bytes = index, index, nil, 0
}

// sizeOf is roughly how many bytes a command keeps; 0 when no part can include
// it.
func sizeOf(cmd Command) int {
	const row = 256
	switch c := cmd.(type) {
	case Register:
		size := row * (1 + len(c.Services) + len(c.Checks))
		for _, check := range c.Checks {
			size += len(check.Output) + len(check.Notes)
		}
		return size
	case Deregister:
		return row + 32*(len(c.Services)+len(c.Checks))
	case UpdateCheck:
		size := row
		for _, u := range c.Updates {
			size += 64 + len(u.Output)
		}
		return size
	case SetCluster:
		return row
	case PutDocument:
		return row + len(c.Document.Key) + len(c.Document.Value)
	}
	return 0
}

// Advance says that the log is at index and that nothing up to there that is not
// applied concerns this replica, which has a part of the state. A lower index is
// ignored. It wakes nobody.
func (s *Store) Advance(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := *s.Snapshot()
	if index <= snap.index {
		return
	}
	snap.index = index
	s.committed.pass(index)
	s.publish(snap, nil)
}

// Position is where a reader of Committed stands. The zero Position is nowhere.
type Position struct {
	epoch uint64
	index uint64
}

// Index is the last entry of the log that the position is behind.
func (p Position) Index() uint64 { return p.index }

// Whole gives the state and the position behind it.
func (s *Store) Whole() (*Snapshot, Position) {
	s.committed.mu.Lock()
	epoch := s.committed.epoch
	s.committed.mu.Unlock()
	// A Restore after this, whose tables may be in the snapshot already, makes the
	// position one that is refused.
	snap := s.Snapshot()
	return snap, Position{epoch + 1, snap.index}
}

// Committed lists the commands behind a position that a part includes, and
// gives the position behind them. Not ok: they are no longer complete, or the
// tables were replaced since; begin with Whole.
func (s *Store) Committed(at Position, p Part) (list []Committed, next Position, ok bool) {
	l := &s.committed
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.epoch != l.epoch+1 || at.index < l.floor {
		return nil, Position{}, false
	}
	from, _ := slices.BinarySearchFunc(l.commands, at.index+1, func(c Committed, index uint64) int {
		switch {
		case c.Index < index:
			return -1
		case c.Index > index:
			return 1
		}
		return 0
	})
	for _, c := range l.commands[from:] {
		if p.Includes(c.Cmd) {
			list = append(list, c)
		}
	}
	return list, Position{at.epoch, max(at.index, l.last)}, true
}

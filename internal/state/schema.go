package state

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/go-memdb"
)

// Tables of the database that no consumer names.
const (
	tableIndex   = "index"   // indexRow
	tableAbsence = "absence" // absence
)

// aspect is one kind of question that the state answers, and so one thing that
// has an index and a watch of its own.
type aspect byte

// The aspects. Their numbers are in snapshots and never change.
const (
	ofTable         aspect = 1  // all rows of a table; name: tableNodes ...
	ofInstances     aspect = 2  // Instances; name: the service's
	ofServiceChecks aspect = 3  // ServiceChecks; name: the service's
	ofNode          aspect = 4  // Node, once it is gone; name: the node's
	ofNodeServices  aspect = 5  // NodeServices
	ofNodeChecks    aspect = 6  // NodeChecks
	ofStatus        aspect = 7  // Checks in one state
	ofEntry         aspect = 8  // Entry, once it is gone; name: the key
	ofKind          aspect = 9  // Documents; name: the kind
	ofDocument      aspect = 10 // Document, once it is gone; name: kind NUL key
	ofPrefix        aspect = 11 // Entries of an empty directory; name: ends with a slash. Only watched, has no rows
	ofSession       aspect = 12 // Session; name: its ID
	ofNodeSessions  aspect = 13 // NodeSessions; name: the node's
	aspects                = 14
)

// Names of the ofTable aspect.
const (
	allNodes  = "nodes"
	allNames  = "names" // what ServiceNames answers
	allChecks = "checks"

	allSessions = "sessions"
)

func (a aspect) String() string {
	names := [aspects]string{"?", "table", "instances", "service-checks", "node", "node-services",
		"node-checks", "status", "entry", "kind", "document", "prefix", "session", "node-sessions"}
	if a >= aspects {
		return fmt.Sprintf("aspect(%d)", byte(a))
	}
	return names[a]
}

// subject is one answer that has an index: an aspect of a name.
type subject struct {
	aspect aspect
	name   string // folded where names are
}

// indexRow holds the log index at which the answer about a subject last
// changed. When the subject is gone the row stays for a while as its
// tombstone, so that who blocks on it wakes and sees no smaller index.
type indexRow struct {
	Aspect aspect `codec:"aspect"`
	Name   string `codec:"name"`
	Index  uint64 `codec:"index"`
	Dead   bool   `codec:"dead,omitempty"`
}

// absence is watched by who asks for a subject that has no row: one of a fixed
// number of buckets, rewritten when a subject that falls into it gets a row.
// Local to the replica and rebuilt with it.
type absence struct {
	aspect aspect
	bucket byte
}

// buckets is how many absence rows an aspect has: a watcher of an absent name
// wakes needlessly at one in so many first appearances of other names.
const buckets = 128

// bucketOf spreads names over the buckets (FNV-1a, folded to one byte).
func bucketOf(name string) byte {
	h := uint32(2166136261)
	for i := 0; i < len(name); i++ {
		h = (h ^ uint32(name[i])) * 16777619
	}
	h ^= h >> 16
	return byte(h^h>>8) % buckets
}

// key makes an index value out of strings, each closed by a NUL so that no
// name is a prefix of another. Names hold no NUL (see valid.go).
func key(parts ...string) []byte {
	n := 0
	for _, p := range parts {
		n += len(p) + 1
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = append(append(b, p...), 0)
	}
	return b
}

func (s subject) key() []byte {
	return append([]byte{byte(s.aspect)}, s.name...)
}

func (r *indexRow) subject() subject { return subject{r.Aspect, r.Name} }

// deadKey orders the tombstones of an aspect by age.
func deadKey(r *indexRow) []byte {
	if !r.Dead {
		return nil
	}
	return binary.BigEndian.AppendUint64([]byte{byte(r.Aspect)}, r.Index)
}

func nodeKey(n *Node) []byte       { return key(Fold(n.Name)) }
func serviceKey(s *Service) []byte { return key(Fold(s.Node), s.ID) }
func checkKey(c *Check) []byte     { return key(Fold(c.Node), c.ID) }
func entryKey(e *Entry) []byte     { return []byte(e.Key) }
func documentKey(d *Document) []byte {
	return append(key(d.Kind), d.Key...)
}

// indexer adapts a function that makes the index value of a row; nil means
// that the row is not in the index. Arguments of queries are index values
// already.
type indexer[T any] func(*T) []byte

func (f indexer[T]) FromObject(obj any) (bool, []byte, error) {
	row, ok := obj.(*T)
	if !ok {
		return false, nil, fmt.Errorf("row is a %T, not a %T", obj, row)
	}
	v := f(row)
	return v != nil, v, nil
}

func (f indexer[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("%d arguments instead of one", len(args))
	}
	v, ok := args[0].([]byte)
	if !ok {
		return nil, fmt.Errorf("argument is a %T, not an index value", args[0])
	}
	return v, nil
}

func (f indexer[T]) PrefixFromArgs(args ...any) ([]byte, error) { return f.FromArgs(args...) }

func unique[T any](f func(*T) []byte) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: "id", Unique: true, Indexer: indexer[T](f)}
}

func table(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
	for _, i := range indexes {
		t.Indexes[i.Name] = i
	}
	return t
}

func by[T any](name string, f func(*T) []byte) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: indexer[T](f)}
}

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range []*memdb.TableSchema{
		table(string(TableNode), unique(nodeKey)),
		table(string(TableService), unique(serviceKey),
			by("name", func(s *Service) []byte { return key(Fold(s.Name)) })),
		table(string(TableCheck), unique(checkKey),
			by("service", func(c *Check) []byte { return key(Fold(c.Node), c.ServiceID) }),
			by("name", func(c *Check) []byte {
				if c.ServiceID == "" {
					return nil
				}
				return key(Fold(c.ServiceName))
			}),
			by("status", func(c *Check) []byte { return key(string(c.Status)) })),
		table(string(TableKV), unique(entryKey),
			by("session", func(e *Entry) []byte {
				if e.Session == "" {
					return nil
				}
				return key(e.Session)
			})),
		table(string(TableSession), unique(func(s *Session) []byte { return key(s.ID) }),
			by("node", func(s *Session) []byte { return key(Fold(s.Node)) })),
		table(string(TableDelay), unique(func(d *LockDelay) []byte { return []byte(d.Key) })),
		table(string(TableDocument), unique(documentKey)),
		table(string(TableCluster), unique(func(*Cluster) []byte { return key("cluster") })),
		table(tableIndex, unique(func(r *indexRow) []byte { return r.subject().key() }),
			by("dead", deadKey)),
		table(tableAbsence, unique(func(a *absence) []byte { return []byte{byte(a.aspect), a.bucket} })),
	} {
		s.Tables[t.Name] = t
	}
	return s
}

// newDB returns a database without a row. The schema is fixed: that it does not
// work is a broken invariant.
func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(fmt.Sprintf("state: schema: %v", err))
	}
	return db
}

// addBuckets inserts the rows that a replica has before its first command.
func addBuckets(txn *memdb.Txn) {
	for a := ofTable; a < aspects; a++ {
		for b := range buckets {
			must(txn.Insert(tableAbsence, &absence{a, byte(b)}))
		}
	}
}

// must panics on an error of go-memdb, which has them only for a wrong schema,
// a wrong row type or a transaction used after its end.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("state: database: %v", err))
	}
}

// first finds the row with the index value v; nil when there is none.
func first[T any](txn *memdb.Txn, table, index string, v []byte) *T {
	row, _ := firstWatch[T](txn, table, index, v)
	return row
}

func firstWatch[T any](txn *memdb.Txn, table, index string, v []byte) (*T, <-chan struct{}) {
	ch, obj, err := txn.FirstWatch(table, index, v)
	must(err)
	row, _ := obj.(*T)
	return row, ch
}

// list collects the rows with the index value v (nil: all), in the order of
// the index and then of the primary key. With a unique index v is a prefix.
func list[T any](txn *memdb.Txn, table, index string, v []byte) []*T {
	rows, _ := listWatch[T](txn, table, index, v)
	return rows
}

func listWatch[T any](txn *memdb.Txn, table, index string, v []byte) ([]*T, <-chan struct{}) {
	var args []any
	if v != nil {
		args = []any{v}
	}
	it, err := txn.Get(table, index, args...)
	must(err)
	var rows []*T
	for obj := it.Next(); obj != nil; obj = it.Next() {
		rows = append(rows, obj.(*T))
	}
	return rows, it.WatchCh()
}

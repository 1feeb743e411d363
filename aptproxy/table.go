package aptproxy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"sort"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
)

// vouched is what a signature says of a file, by way of an index.
type vouched struct {
	sum  cas.Sum
	size int64 // bytes, or sizeUnknown
}

// table is what one index vouches for: small, since Debian's indices list
// 60,000 files each. Paths stand in it by half of their hash.
type table struct{ rows []row }

type row struct {
	key [16]byte
	vouched
}

func keyOf(path string) (key [16]byte) {
	sum := sha256.Sum256([]byte(path))
	copy(key[:], sum[:])
	return key
}

// newTable reads an index. dir is the directory of its Release below the root
// of the repository.
func newTable(dir, name string, in io.Reader) (*table, error) {
	t := &table{}
	err := deb.ReadIndex(dir, name, in, func(p deb.Package) error {
		for _, f := range p.Files {
			if len(t.rows) >= maxRows {
				return fmt.Errorf("%w: more than %d files", deb.ErrFormat, maxRows)
			}
			t.rows = append(t.rows, row{keyOf(f.Path), vouched{cas.Sum(f.Sum), f.Size}})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(t.rows, func(a, b row) int { return bytes.Compare(a.key[:], b.key[:]) })
	t.rows = slices.Clip(t.rows)
	return t, nil
}

// maxRows bounds the files of an index.
const maxRows = 4_000_000

// find looks a path up, relative to the root of the repository.
func (t *table) find(path string) (vouched, bool) {
	key := keyOf(path)
	i := sort.Search(len(t.rows), func(i int) bool { return bytes.Compare(t.rows[i].key[:], key[:]) >= 0 })
	if i == len(t.rows) || t.rows[i].key != key {
		return vouched{}, false
	}
	return t.rows[i].vouched, true
}

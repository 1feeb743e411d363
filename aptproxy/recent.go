package aptproxy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/state"
)

// recent remembers the files that were asked for last, and by whom.
type recent struct {
	mu   sync.Mutex
	list []Request // a ring
	next int
}

// Request is a file that a node asked for.
type Request struct {
	Node       string    `json:"node"` // its name, or its address
	Repository string    `json:"repository"`
	Path       string    `json:"path"`
	Size       int64     `json:"size"` // bytes of the file
	At         time.Time `json:"at"`
}

// maxRecent bounds what is remembered of requests.
const maxRecent = 100_000

func (r *recent) note(one Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) < maxRecent {
		r.list = append(r.list, one)
		return
	}
	r.list[r.next] = one
	r.next = (r.next + 1) % maxRecent
}

// find lists the requests whose file begins with NAME_ or NAME_VERSION, in the
// order in which they came.
func (r *recent) find(prefix string) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []Request{}
	for i := range r.list {
		one := r.list[(r.next+i)%len(r.list)]
		if strings.HasPrefix(one.base(), prefix) {
			list = append(list, one)
		}
	}
	return list
}

// base is the last part of a path.
func (r Request) base() string { return r.Path[strings.LastIndexByte(r.Path, '/')+1:] }

// packageName is the name of the package that a request is for; "" when it is
// for none.
func (r Request) packageName() string {
	base := r.base()
	name, _, ok := strings.Cut(base, "_")
	if !ok || !strings.HasSuffix(base, ".deb") {
		return ""
	}
	return name
}

// packages are the names of the packages that were asked for.
func (r *recent) packages() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := map[string]bool{}
	for _, one := range r.list {
		if name := one.packageName(); name != "" {
			names[name] = true
		}
	}
	list := make([]string, 0, len(names))
	for name := range names {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// Top is how much was asked for of one kind.
type Top struct {
	Name     string `json:"name"`
	Requests int    `json:"requests"`
	Bytes    int64  `json:"bytes"` // of the files that were asked for
}

// top counts the requests by what by says (node, package, repository), the most
// bytes first.
func (r *recent) top(by string) ([]Top, error) {
	name := map[string]func(Request) string{
		"node":       func(one Request) string { return one.Node },
		"package":    Request.packageName,
		"repository": func(one Request) string { return one.Repository },
	}[by]
	if name == nil {
		return nil, fmt.Errorf("%w: %q is none of node, package, repository", state.ErrInvalid, clip(by))
	}
	r.mu.Lock()
	counts := map[string]*Top{}
	for _, one := range r.list {
		key := name(one)
		if key == "" {
			continue
		}
		if counts[key] == nil {
			counts[key] = &Top{Name: key}
		}
		counts[key].Requests++
		counts[key].Bytes += one.Size
	}
	r.mu.Unlock()
	list := make([]Top, 0, len(counts))
	for _, t := range counts {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b Top) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(b.Requests, a.Requests), strings.Compare(a.Name, b.Name))
	})
	return list, nil
}

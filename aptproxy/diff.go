package aptproxy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/aptproxy/deb"
	"holdfast/internal/state"
)

// SnapshotReport is a generation that this node keeps.
type SnapshotReport struct {
	Repository string    `json:"repository"`
	Suite      string    `json:"suite"`
	Generation string    `json:"generation"`
	Released   time.Time `json:"released"`
	Published  time.Time `json:"published"` // when clients of this node first saw it
	Current    bool      `json:"current"`
}

// Snapshots lists the generations, the newest of each suite first.
func (s *Server) Snapshots() []SnapshotReport {
	list := []SnapshotReport{}
	for _, r := range s.active.Load().repositories {
		for _, su := range r.all() {
			for i, g := range su.all() {
				list = append(list, SnapshotReport{r.name, su.dir, g.id, g.release.Date, g.published, i == 0})
			}
		}
	}
	return list
}

// DiffRequest names two generations of a suite by the beginning of their ids.
type DiffRequest struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Change is a package whose version differs; "" it is not there.
type Change struct {
	Package string `json:"package"`
	Arch    string `json:"arch"`
	From    string `json:"from"`
	To      string `json:"to"`
	// Security says that the newer version comes from a suite of security updates.
	Security bool `json:"security"`
}

// isSecurity tells a suite of security updates by its Label, as
// unattended-upgrades does: Debian-Security.
func (g *generation) isSecurity() bool {
	return strings.Contains(strings.ToLower(g.release.Label), "security")
}

// Diff tells which packages differ between two generations, in the indices that
// clients use. It blocks while indices are read, or fetched. The error wraps
// state.ErrNotFound or state.ErrInvalid, or is a mirror's.
func (s *Server) Diff(d DiffRequest) ([]Change, error) {
	repo, su, from, err := s.findGeneration(d.From)
	if err != nil {
		return nil, err
	}
	_, other, to, err := s.findGeneration(d.To)
	if err != nil {
		return nil, err
	}
	if su.dir != other.dir {
		return nil, fmt.Errorf("%w: %s and %s are of different suites: %s and %s", state.ErrInvalid, d.From, d.To, su.dir, other.dir)
	}
	before, err := s.versions(repo, su, from)
	if err != nil {
		return nil, err
	}
	after, err := s.versions(repo, su, to)
	if err != nil {
		return nil, err
	}
	list := []Change{}
	for key, version := range before {
		if after[key] != version {
			list = append(list, Change{key[0], key[1], version, after[key], after[key] != "" && to.isSecurity()})
		}
	}
	for key, version := range after {
		if _, had := before[key]; !had {
			list = append(list, Change{key[0], key[1], "", version, to.isSecurity()})
		}
	}
	slices.SortFunc(list, func(a, b Change) int { return strings.Compare(a.Package+"\x00"+a.Arch, b.Package+"\x00"+b.Arch) })
	return list, nil
}

// minID is how much of an id says which generation is meant.
const minID = 6

func (s *Server) findGeneration(id string) (*repository, *suite, *generation, error) {
	if len(id) < minID {
		return nil, nil, nil, fmt.Errorf("%w: %q is too short for a generation: at least %d digits", state.ErrInvalid, clip(id), minID)
	}
	for _, r := range s.active.Load().repositories {
		for _, su := range r.all() {
			list := su.all()
			if v := s.views.Load(); v != nil {
				for _, one := range v.list {
					if g := one.suites[[2]string{r.name, su.dir}]; g != nil {
						list = append(list, g)
					}
				}
			}
			for _, g := range list {
				if strings.HasPrefix(g.id, id) {
					return r, su, g, nil
				}
			}
		}
	}
	return nil, nil, nil, fmt.Errorf("%w: no generation begins with %s: see holdfast apt snapshots", state.ErrNotFound, clip(id))
}

// versions are the versions of all packages of a generation, by name and
// architecture. Of several versions of one the last listed counts.
func (s *Server) versions(r *repository, su *suite, g *generation) (map[[2]string]string, error) {
	found := map[[2]string]string{}
	for _, plain := range su.indices(g) {
		file, ok := s.variant(g, plain)
		if kind, _ := deb.KindOf(plain); !ok || kind != deb.Packages && kind != deb.Sources {
			continue
		}
		data, err := s.whole(r, g, file)
		if err != nil {
			return nil, err
		}
		err = deb.ReadIndex(g.dir, file.Path, bytes.NewReader(data), func(p deb.Package) error {
			found[[2]string{p.Name, p.Architecture}] = p.Version
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

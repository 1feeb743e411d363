package aptproxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"holdfast/aptproxy/cas"
	"holdfast/aptproxy/deb"
	"holdfast/internal/state"
)

// WarmRequest says what is to be fetched before clients ask for it.
type WarmRequest struct {
	Repository string   `json:"repository"` // "" all
	Suite      string   `json:"suite"`      // its directory, such as dists/bookworm; "" all that clients use
	Packages   []string `json:"packages"`   // names; none: those that nodes fetched lately
}

// WarmReport is what became of it.
type WarmReport struct {
	Here    int      `json:"here"` // files that were here already
	Fetched int      `json:"fetched"`
	Bytes   int64    `json:"bytes"` // of what was fetched
	Unknown []string `json:"unknown"`
	Failed  []string `json:"failed"` // paths, with why
}

// warmers is how many files are fetched at a time.
const warmers = 4

// Warm fetches packages of the current generations, in every architecture that
// clients use. It blocks until they are here. The error wraps state.ErrNotFound
// when there is nothing to fetch from; files that fail are in the report.
func (s *Server) Warm(ctx context.Context, q WarmRequest) (WarmReport, error) {
	report := WarmReport{Unknown: []string{}, Failed: []string{}}
	wanted := map[string]bool{} // true: it was found
	for _, name := range q.Packages {
		wanted[name] = false
	}
	if len(q.Packages) == 0 {
		for _, name := range s.recent.packages() {
			wanted[name] = false
		}
	}
	if len(wanted) == 0 {
		return report, fmt.Errorf("%w: no node fetched a package since this node's start: name some", state.ErrNotFound)
	}
	jobs, err := s.warmJobs(q, wanted)
	if err != nil {
		return report, err
	}
	for name, found := range wanted {
		if !found && len(q.Packages) > 0 {
			report.Unknown = append(report.Unknown, name)
		}
	}
	slices.Sort(report.Unknown)
	failures := make([]error, len(jobs))
	var group sync.WaitGroup
	next := make(chan int)
	for range warmers {
		group.Go(func() {
			for i := range next {
				failures[i] = s.warmOne(ctx, jobs[i])
			}
		})
	}
	for i, job := range jobs {
		if _, here := s.store.Has(job.sum); here {
			report.Here++
			jobs[i].here = true
			continue
		}
		next <- i
	}
	close(next)
	group.Wait()
	for i, job := range jobs {
		switch {
		case job.here:
		case failures[i] == nil:
			report.Fetched++
			report.Bytes += job.size
		default:
			report.Failed = append(report.Failed, fmt.Sprintf("%s: %v", job.path, failures[i]))
		}
	}
	return report, ctx.Err()
}

// warmJob is a file to fetch.
type warmJob struct {
	vouched
	repository *repository
	path       string
	here       bool
}

func (s *Server) warmOne(ctx context.Context, job warmJob) error {
	one, reader := s.fetch(s.wantOf(job.repository, job.vouched, []string{job.path}))
	reader.close()
	select {
	case <-one.done:
		return one.body.failure()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// warmJobs finds the files of the packages that are wanted, and marks these.
func (s *Server) warmJobs(q WarmRequest, wanted map[string]bool) (jobs []warmJob, err error) {
	suites := 0
	seen := map[cas.Sum]bool{}
	for _, r := range s.active.Load().repositories {
		if q.Repository != "" && q.Repository != r.name {
			continue
		}
		for _, su := range r.all() {
			g := su.current()
			if g == nil || q.Suite != "" && q.Suite != su.dir && "dists/"+q.Suite != su.dir {
				continue
			}
			suites++
			err := s.eachPackage(r, su, g, deb.Packages, func(p deb.Package) {
				if _, is := wanted[p.Name]; !is {
					return
				}
				wanted[p.Name] = true
				for _, f := range p.Files {
					if sum := cas.Sum(f.Sum); !seen[sum] {
						seen[sum] = true
						jobs = append(jobs, warmJob{vouched{sum, f.Size}, r, f.Path, false})
					}
				}
			})
			if err != nil {
				return nil, err
			}
		}
	}
	if suites == 0 {
		return nil, fmt.Errorf("%w: no client used such a suite of such a repository: see holdfast apt status", state.ErrNotFound)
	}
	return jobs, nil
}

// eachPackage reads the indices of a kind that clients use of a generation.
func (s *Server) eachPackage(r *repository, su *suite, g *generation, kind deb.Kind, each func(deb.Package)) error {
	for _, plain := range su.indices(g) {
		file, ok := s.variant(g, plain)
		if is, _ := deb.KindOf(plain); !ok || is != kind {
			continue
		}
		data, err := s.whole(r, g, file)
		if err != nil {
			return err
		}
		err = deb.ReadIndex(g.dir, file.Path, bytes.NewReader(data), func(p deb.Package) error {
			each(p)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// knowAll reads the tables of all indices that clients use, so that what they list
// is known to be vouched for. An index that can't be had is left out.
func (s *Server) knowAll() {
	for _, r := range s.active.Load().repositories {
		for _, su := range r.all() {
			for _, g := range su.all() {
				for _, plain := range su.indices(g) {
					if _, err := s.table(r, g, plain); err != nil {
						s.log.Warn("an index can't be read", "repository", r.name, "suite", su.dir, "index", plain, "error", err)
					}
				}
			}
		}
	}
}

// ImportReport is what an import found.
type ImportReport struct {
	Imported int   `json:"imported"`
	Bytes    int64 `json:"bytes"` // of these
	Here     int   `json:"here"`  // were in the store already
	Unknown  int   `json:"unknown"`
	Failed   int   `json:"failed"` // could not be read or stored
}

// Import takes over the files below a directory that a signature vouches for,
// whatever their names: an apt-cacher-ng cache, /var/cache/apt/archives, a
// mirror. What nothing vouches for is left where it is. It blocks while all of
// them are read. The error is the directory's, wraps state.ErrNotFound when no
// suite is known yet, or cas.ErrFull.
func (s *Server) Import(ctx context.Context, dir string) (ImportReport, error) {
	report := ImportReport{}
	root, err := os.OpenRoot(dir) // no link in it leads out of it
	if err != nil {
		return report, fmt.Errorf("%w: %w", state.ErrInvalid, err)
	}
	defer root.Close()
	s.knowAll()
	known := s.rankAll()
	if len(known) == 0 {
		return report, fmt.Errorf("%w: no suite is known here yet, so nothing is vouched for: run apt-get update through this proxy first", state.ErrNotFound)
	}
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			report.Failed++
			return nil
		case !entry.Type().IsRegular():
			return nil
		}
		err = s.importFile(root, name, known, &report)
		if errors.Is(err, cas.ErrFull) {
			return err
		}
		if err != nil {
			report.Failed++
			s.log.Warn("a file can't be imported", "dir", dir, "file", name, "error", err)
		}
		return nil
	})
	s.log.Info("imported", "dir", dir, "files", report.Imported, "bytes", report.Bytes, "unknown", report.Unknown)
	return report, err
}

func (s *Server) importFile(root *os.Root, name string, known map[cas.Sum]cas.Rank, report *ImportReport) error {
	file, err := root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return err
	}
	sum := cas.Sum(hash.Sum(nil))
	if _, vouchedFor := known[sum]; !vouchedFor {
		report.Unknown++
		return nil
	}
	if _, here := s.store.Has(sum); here {
		report.Here++
		return nil
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w, err := s.store.Create(info.Size())
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(w, file); err != nil {
		return err
	}
	if err := w.Commit(sum, info.ModTime()); err != nil { // it changed meanwhile, or the disk's
		return err
	}
	report.Imported++
	report.Bytes += info.Size()
	return nil
}

// PurgeRequest says what is to be removed from the store.
type PurgeRequest struct {
	Files        []string `json:"files"`        // REPOSITORY/PATH
	Unreferenced bool     `json:"unreferenced"` // what no kept generation vouches for
}

// PurgeReport is what was removed.
type PurgeReport struct {
	Removed int   `json:"removed"`
	Bytes   int64 `json:"bytes"`
}

// Purge removes files from the store; they are fetched again when a client
// wants them. It blocks while indices are read. The error wraps
// state.ErrNotFound for a file that no repository has, or is the disk's.
func (s *Server) Purge(ctx context.Context, q PurgeRequest) (PurgeReport, error) {
	report := PurgeReport{}
	remove := func(sum cas.Sum) error {
		size, here := s.store.Has(sum)
		if !here {
			return nil
		}
		if err := s.store.Remove(sum); err != nil {
			return err
		}
		report.Removed++
		report.Bytes += size
		return nil
	}
	for _, name := range q.Files {
		f, err := s.fileNamed(ctx, name)
		if err == nil {
			err = remove(f.sum)
		}
		if err != nil {
			return report, err
		}
	}
	if q.Unreferenced {
		s.knowAll()
		known := s.rankAll()
		for _, b := range s.store.Blobs() {
			if _, needed := known[b.Sum]; needed {
				continue
			}
			if err := remove(b.Sum); err != nil {
				return report, err
			}
		}
	}
	s.log.Info("purged", "files", report.Removed, "bytes", report.Bytes)
	return report, nil
}

// fileNamed finds the file REPOSITORY/PATH.
func (s *Server) fileNamed(ctx context.Context, name string) (found, error) {
	repo, rest, _ := strings.Cut(strings.TrimPrefix(path.Clean("/"+name), "/"), "/")
	for _, r := range s.active.Load().repositories {
		if r.name != repo {
			continue
		}
		f, err := s.resolve(ctx, r, "", rest)
		if err == nil && f.listed {
			return f, nil
		}
	}
	return found{}, fmt.Errorf("%w: no repository vouches for %q; it is written REPOSITORY/PATH, such as debian/pool/main/b/bash/bash_5.2_amd64.deb", state.ErrNotFound, clip(name))
}

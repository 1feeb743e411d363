package aptorigin

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Source is a source package that a repository gets, of the native format.
type Source struct {
	Name, Version string
	Content       []byte // of the file "content" in its tree
}

// AddSource puts a source package into the pool.
func (r *Repository) AddSource(s Source) error {
	tree, err := archive(map[string][]byte{
		fmt.Sprintf("%s-%s/content", s.Name, s.Version):              s.Content,
		fmt.Sprintf("%s-%s/debian/source/format", s.Name, s.Version): []byte("3.0 (native)\n"),
	}, gzip.DefaultCompression)
	if err != nil {
		return err
	}
	stem := s.Name + "_" + s.Version
	dsc := fmt.Sprintf(`Format: 3.0 (native)
Source: %[1]s
Binary: %[1]s
Architecture: all
Version: %[2]s
Maintainer: Lab <lab@example.com>
Standards-Version: 4.6.2
Package-List:
 %[1]s deb misc optional arch=all
Checksums-Sha256:
 %[3]x %[4]d %[5]s.tar.gz
Files:
 %[6]x %[4]d %[5]s.tar.gz
`, s.Name, s.Version, sha256.Sum256(tree), len(tree), stem, md5.Sum(tree))
	dir := filepath.Join(r.Dir, "pool/main", s.Name[:1], s.Name)
	return errors.Join(
		replace(filepath.Join(dir, stem+".tar.gz"), tree),
		replace(filepath.Join(dir, stem+".dsc"), []byte(dsc)))
}

// patch leads from one state of an index to the next, as Debian's mirrors offer
// it (a pdiff): what diff --ed prints.
type patch struct {
	name             string
	from             [32]byte // the index that it is for
	fromSize         int
	text, compressed []byte
}

// diff writes Packages.diff of an index that is about to be replaced.
func (r *Repository) diff(ctx context.Context, index string, packages []byte) error {
	before, err := os.ReadFile(filepath.Join(index, "Packages"))
	if errors.Is(err, os.ErrNotExist) || bytes.Equal(before, packages) {
		return nil
	}
	if err != nil {
		return err
	}
	after := filepath.Join(index, "Packages.new")
	if err := os.WriteFile(after, packages, 0o644); err != nil {
		return err
	}
	defer os.Remove(after)
	cmd := exec.CommandContext(ctx, "diff", "--ed", filepath.Join(index, "Packages"), after)
	text, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) { // 1: they differ
		return fmt.Errorf("diff --ed: %w", err)
	}
	compressed, err := compress(text)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("T-lab-%03d", len(r.patches[index]))
	if r.patches == nil {
		r.patches = map[string][]patch{}
	}
	r.patches[index] = append(r.patches[index], patch{name, sha256.Sum256(before), len(before), text, compressed})
	var history, patches, download strings.Builder
	for _, p := range r.patches[index] {
		fmt.Fprintf(&history, " %x %d %s\n", p.from, p.fromSize, p.name)
		fmt.Fprintf(&patches, " %x %d %s\n", sha256.Sum256(p.text), len(p.text), p.name)
		fmt.Fprintf(&download, " %x %d %s.gz\n", sha256.Sum256(p.compressed), len(p.compressed), p.name)
	}
	dir := filepath.Join(index, "Packages.diff")
	return errors.Join(
		replace(filepath.Join(dir, name+".gz"), compressed),
		replace(filepath.Join(dir, "Index"), fmt.Appendf(nil, "SHA256-Current: %x %d\nSHA256-History:\n%sSHA256-Patches:\n%sSHA256-Download:\n%s",
			sha256.Sum256(packages), len(packages), history.String(), patches.String(), download.String())))
}

func compress(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}

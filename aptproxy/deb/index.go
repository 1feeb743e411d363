package deb

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// Kind is what an index lists.
type Kind int

// The kinds of indices that vouch for other files.
const (
	NoIndex  Kind = iota // vouches for nothing: Contents, Translation ...
	Packages             // binary packages
	Sources              // source packages
	Diffs                // Packages.diff/Index: patches between indices
	SumFile              // SHA256SUMS of the installer's images
)

// KindOf tells the kind of an index from its path, and that path without the
// suffix of a compression.
func KindOf(name string) (Kind, string) {
	plain := name
	switch ext := path.Ext(name); ext {
	case ".gz", ".xz", ".bz2", ".lzma", ".zst":
		plain = strings.TrimSuffix(name, ext)
	}
	switch base := path.Base(plain); {
	case base == "Packages":
		return Packages, plain
	case base == "Sources":
		return Sources, plain
	case base == "Index" && strings.HasSuffix(path.Dir(plain), ".diff"):
		return Diffs, plain
	case base == "SHA256SUMS":
		return SumFile, plain
	}
	return NoIndex, plain
}

// MaxIndex is how large an index may become when it is unpacked, in bytes.
// Debian's largest is some 60 MB.
const MaxIndex = 1 << 30

// ErrTooLarge says that an index is larger than MaxIndex when unpacked.
var ErrTooLarge = errors.New("the index is too large when unpacked")

// Unpack gives the content of an index by its name's suffix.
func Unpack(name string, r io.Reader) (io.ReadCloser, error) {
	plain, err := unpack(name, r)
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", name, err)
	}
	limited := &limitReader{r: plain, left: MaxIndex}
	if c, ok := plain.(io.Closer); ok {
		return readCloser{limited, c}, nil
	}
	return io.NopCloser(limited), nil
}

func unpack(name string, r io.Reader) (io.Reader, error) {
	switch path.Ext(name) {
	case ".gz":
		return gzip.NewReader(r)
	case ".bz2":
		return bzip2.NewReader(r), nil
	case ".xz":
		return xz.ReaderConfig{DictCap: 64 << 20}.NewReader(bufio.NewReader(r))
	case ".lzma":
		return lzma.ReaderConfig{DictCap: 64 << 20}.NewReader(bufio.NewReader(r))
	case ".zst":
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxIndex), zstd.WithDecoderMaxWindow(64<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return r, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// limitReader fails where io.LimitReader would end.
type limitReader struct {
	r    io.Reader
	left int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, ErrTooLarge
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// Package is what an index says of a package, beside its files.
type Package struct {
	Name, Version, Architecture string
	Files                       []File // paths from the root of the repository
}

// ReadIndex calls each for every package (or image, or patch) of an index.
// name is the index's path below the Release's directory and dir that
// directory's below the root of the repository: what an index of the kinds
// Diffs and SumFile lists stands beside it. The file is unpacked by its suffix.
// Entries without a SHA-256 are left out: nothing vouches for them.
func ReadIndex(dir, name string, r io.Reader, each func(Package) error) error {
	kind, _ := KindOf(name)
	plain, err := Unpack(name, r)
	if err != nil {
		return err
	}
	defer plain.Close()
	switch kind {
	case Packages:
		err = readPackages(plain, each)
	case Sources:
		err = readSources(plain, each)
	case Diffs:
		err = readDiffs(path.Join(dir, path.Dir(name)), plain, each)
	case SumFile:
		err = readSumFile(path.Join(dir, path.Dir(name)), plain, each)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func readPackages(r io.Reader, each func(Package) error) error {
	want := fields("package", "version", "architecture", "filename", "size", "sha256")
	return paragraphs(r, want, func(f map[string]string) error {
		if f["sha256"] == "" || f["filename"] == "" {
			return nil
		}
		file, err := newFile(f["sha256"], f["size"], f["filename"])
		if err != nil {
			return err
		}
		return each(Package{Name: f["package"], Version: f["version"], Architecture: f["architecture"], Files: []File{file}})
	})
}

func readSources(r io.Reader, each func(Package) error) error {
	want := fields("package", "version", "directory", "checksums-sha256")
	return paragraphs(r, want, func(f map[string]string) error {
		if f["checksums-sha256"] == "" {
			return nil
		}
		p := Package{Name: f["package"], Version: f["version"], Architecture: "source"}
		err := sumLines(f["checksums-sha256"], func(hash, size, name string) error {
			file, err := newFile(hash, size, path.Join(f["directory"], name))
			p.Files = append(p.Files, file)
			return err
		})
		if err != nil {
			return err
		}
		return each(p)
	})
}

// readDiffs reads the patches of an index as they are downloaded.
func readDiffs(dir string, r io.Reader, each func(Package) error) error {
	return paragraphs(r, fields("sha256-download"), func(f map[string]string) error {
		p := Package{Name: path.Base(dir)}
		err := sumLines(f["sha256-download"], func(hash, size, name string) error {
			file, err := newFile(hash, size, path.Join(dir, name))
			p.Files = append(p.Files, file)
			return err
		})
		if err != nil || len(p.Files) == 0 {
			return err
		}
		return each(p)
	})
}

// SizeUnknown is the size of a file of a SHA256SUMS, which says none.
const SizeUnknown = -1

func readSumFile(dir string, r io.Reader, each func(Package) error) error {
	in := bufio.NewReader(r)
	for {
		line, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if part := strings.Fields(line); len(part) == 2 {
			file, bad := newFile(part[0], "0", path.Join(dir, strings.TrimPrefix(part[1], "*")))
			if bad != nil {
				return bad
			}
			file.Size = SizeUnknown
			if bad := each(Package{Name: path.Base(file.Path), Files: []File{file}}); bad != nil {
				return bad
			}
		}
		if err != nil {
			return nil
		}
	}
}

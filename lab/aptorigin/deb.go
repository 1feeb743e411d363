package aptorigin

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Package is a binary package that a repository gets.
type Package struct {
	Name, Version string
	Arch          string // "all" unless said
	Depends       string
	Priority      string // "optional" unless said
	Content       []byte // of /usr/share/doc/NAME/content
}

// epoch is when all files of packages were made: the same package is the same
// bytes.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (p Package) arch() string {
	if p.Arch == "" {
		return "all"
	}
	return p.Arch
}

func (p Package) file() string { return fmt.Sprintf("%s_%s_%s.deb", p.Name, p.Version, p.arch()) }

// build makes the .deb (deb(5)): an ar archive of two tar archives.
func (p Package) build() ([]byte, error) {
	control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: Lab <lab@example.com>\nSection: misc\nPriority: %s\n", p.Name, p.Version, p.arch(), cmp.Or(p.Priority, "optional"))
	if p.Depends != "" {
		control += "Depends: " + p.Depends + "\n"
	}
	control += "Description: a package of the lab\n"
	meta, err := archive(map[string][]byte{"./control": []byte(control)}, gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	// Stored, so that its size is that of the content.
	data, err := archive(map[string][]byte{"./usr/share/doc/" + p.Name + "/content": p.Content}, gzip.NoCompression)
	if err != nil {
		return nil, err
	}
	var deb bytes.Buffer
	deb.WriteString("!<arch>\n")
	for _, part := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", meta}, {"data.tar.gz", data}} {
		fmt.Fprintf(&deb, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", part.name, epoch.Unix(), 0, 0, "100644", len(part.data))
		deb.Write(part.data)
		if len(part.data)%2 == 1 {
			deb.WriteByte('\n')
		}
	}
	return deb.Bytes(), nil
}

// archive makes a compressed tar archive of files in their directories.
func archive(files map[string][]byte, level int) ([]byte, error) {
	var out bytes.Buffer
	packed, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(packed)
	made := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for i := range name {
			if name[i] != '/' || made[name[:i+1]] {
				continue
			}
			made[name[:i+1]] = true
			if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name[:i+1], Mode: 0o755, ModTime: epoch}); err != nil {
				return nil, err
			}
		}
		err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: epoch})
		if err != nil {
			return nil, err
		}
		if _, err := t.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(t.Close(), packed.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// pool is where a package is in the repository.
func (p Package) pool() string {
	return "pool/main/" + p.Name[:1] + "/" + strings.TrimSuffix(p.Name, "-") + "/" + p.file()
}

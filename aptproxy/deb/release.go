package deb

import (
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"
)

// Release is what a Release file says (wiki.debian.org/DebianRepository/Format).
type Release struct {
	Origin, Label, Suite, Codename string

	Date       time.Time
	ValidUntil time.Time // zero: for ever
	ByHash     bool      // Acquire-By-Hash: the mirror keeps indices under their hashes

	// Files are the indices by their path below the Release's directory.
	Files map[string]File

	// other finds the file of a hash that is not SHA-256: hex to path.
	other map[string]string
}

// maxReleaseFiles bounds the files of a Release. Debian's has some 1,500 with
// hashes of two kinds.
const maxReleaseFiles = 200_000

// ParseRelease reads a Release file without its signature. Indices count only
// with a SHA-256; a Release that has none is an error, since it proves nothing.
// The error wraps ErrFormat or is the reader's.
func ParseRelease(r io.Reader) (*Release, error) {
	var rel *Release
	want := fields("origin", "label", "suite", "codename", "date", "valid-until", "acquire-by-hash", "sha256", "sha512", "sha1", "md5sum")
	err := paragraphs(r, want, func(f map[string]string) (err error) {
		if rel != nil {
			return fmt.Errorf("%w: a Release has one paragraph, not more", ErrFormat)
		}
		rel, err = newRelease(f)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("Release: %w", err)
	}
	if rel == nil {
		return nil, fmt.Errorf("Release: %w: it is empty", ErrFormat)
	}
	return rel, nil
}

func newRelease(f map[string]string) (*Release, error) {
	rel := &Release{
		Origin: f["origin"], Label: f["label"], Suite: f["suite"], Codename: f["codename"],
		ByHash: strings.EqualFold(f["acquire-by-hash"], "yes"),
		Files:  map[string]File{}, other: map[string]string{},
	}
	var err error
	if rel.Date, err = parseDate("Date", f["date"]); err != nil {
		return nil, err
	}
	if rel.ValidUntil, err = parseDate("Valid-Until", f["valid-until"]); err != nil {
		return nil, err
	}
	if err := rel.readSums(f["sha256"]); err != nil {
		return nil, err
	}
	if len(rel.Files) == 0 {
		return nil, fmt.Errorf("%w: it names no file with a SHA-256", ErrFormat)
	}
	for _, kind := range []string{"sha512", "sha1", "md5sum"} {
		if err := rel.readOther(f[kind]); err != nil {
			return nil, err
		}
	}
	return rel, nil
}

// parseDate reads RFC 2822's form, as dpkg writes it, in UTC.
func parseDate(field, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC1123, time.RFC1123Z, "Mon, _2 Jan 2006 15:04:05 MST", "Mon, _2 Jan 2006 15:04:05 -0700"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: %s %q is no date such as Sat, 01 Nov 2025 09:52:00 UTC", ErrFormat, field, clip(text))
}

func (rel *Release) readSums(text string) error {
	return sumLines(text, func(hash, size, name string) error {
		file, err := newFile(hash, size, name)
		if err != nil {
			return err
		}
		if len(rel.Files) >= maxReleaseFiles {
			return fmt.Errorf("%w: it names more than %d files", ErrFormat, maxReleaseFiles)
		}
		rel.Files[file.Path] = file
		return nil
	})
}

// readOther reads the hashes of another kind, for files known by SHA-256.
func (rel *Release) readOther(text string) error {
	return sumLines(text, func(hash, _, name string) error {
		name, err := cleanPath(name)
		if err != nil {
			return err
		}
		if _, known := rel.Files[name]; known {
			rel.other[strings.ToLower(hash)] = name
		}
		return nil
	})
}

// sumLines reads lines of hash, size and path.
func sumLines(text string, each func(hash, size, name string) error) error {
	for line := range strings.Lines(text) {
		part := strings.Fields(line)
		if len(part) == 0 {
			continue
		}
		if len(part) != 3 {
			return fmt.Errorf("%w: %q is no hash, size and path", ErrFormat, clip(strings.TrimSpace(line)))
		}
		if err := each(part[0], part[1], part[2]); err != nil {
			return err
		}
	}
	return nil
}

func newFile(hash, size, name string) (File, error) {
	name, err := cleanPath(name)
	if err != nil {
		return File{}, err
	}
	sum, err := ParseSum(hash)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", name, err)
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil || n < 0 {
		return File{}, fmt.Errorf("%w: %s: %q is no size in bytes", ErrFormat, name, clip(size))
	}
	return File{Path: name, Size: n, Sum: sum}, nil
}

// ParseSum reads a SHA-256 in hex.
func ParseSum(text string) (Sum, error) {
	var sum Sum
	if len(text) != hex.EncodedLen(len(sum)) {
		return sum, fmt.Errorf("%w: %q is no SHA-256 in hex", ErrFormat, clip(text))
	}
	if _, err := hex.Decode(sum[:], []byte(text)); err != nil {
		return sum, fmt.Errorf("%w: %q is no SHA-256 in hex", ErrFormat, clip(text))
	}
	return sum, nil
}

// String is the sum in hex.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// Find gives the file that a path below the Release's directory means: a name
// that it lists, or DIR/by-hash/KIND/HEX of one.
func (rel *Release) Find(name string) (File, bool) {
	if f, ok := rel.Files[name]; ok {
		return f, true
	}
	dir, kind, hash, ok := SplitByHash(name)
	if !ok {
		return File{}, false
	}
	if kind == "SHA256" {
		sum, err := ParseSum(hash)
		if err != nil {
			return File{}, false
		}
		for _, f := range rel.Files {
			if f.Sum == sum && path.Dir(f.Path) == dir {
				return f, true
			}
		}
		return File{}, false
	}
	f, ok := rel.Files[rel.other[strings.ToLower(hash)]]
	if !ok || path.Dir(f.Path) != dir {
		return File{}, false
	}
	return f, true
}

// SplitByHash takes DIR/by-hash/KIND/HEX apart; dir is "." at the top.
func SplitByHash(name string) (dir, kind, hash string, ok bool) {
	above, hash := path.Split(name)
	above, kind = path.Split(strings.TrimSuffix(above, "/"))
	dir, word := path.Split(strings.TrimSuffix(above, "/"))
	if word != "by-hash" || hash == "" || kind == "" {
		return "", "", "", false
	}
	return path.Clean(dir), kind, hash, true
}

// ByHashPath is where a mirror with Acquire-By-Hash keeps a file.
func (f File) ByHashPath() string {
	return path.Join(path.Dir(f.Path), "by-hash", "SHA256", f.Sum.String())
}

// Package deb reads what describes a Debian repository: Release files and
// their signatures, and the indices that a Release names. It is pure: no disk,
// no network, no clock.
package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Bounds on foreign text.
const (
	maxLine  = 1 << 20 // bytes in a line; Debian's longest are some ten thousand
	maxField = 8 << 20 // bytes in a field with its continuation lines
)

// Sum is a SHA-256.
type Sum [32]byte

// ErrFormat is wrapped by every error about what a file says.
var ErrFormat = errors.New("not in the format of a Debian repository")

// File is a file that a Release or an index vouches for.
type File struct {
	Path string // relative, cleaned; of a Release: to its directory; of an index: to the root of the repository
	Size int64  // bytes
	Sum  Sum
}

// cleanPath accepts a relative path that stays where it is.
func cleanPath(p string) (string, error) {
	c := path.Clean(p)
	if p == "" || path.IsAbs(p) || c == ".." || strings.HasPrefix(c, "../") || strings.ContainsAny(p, "\x00\\") {
		return "", fmt.Errorf("%w: %q is no relative path", ErrFormat, clip(p))
	}
	return c, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// paragraphs reads deb822 paragraphs (Debian Policy §5.1) and calls each for
// every one, with the fields that want names, in lower case. The map is used
// again for the next paragraph. A reader's error is returned wrapped.
func paragraphs(r io.Reader, want map[string]bool, each func(map[string]string) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	p := paragraph{want: want, fields: map[string]string{}}
	for {
		line, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		ended := errors.Is(err, io.EOF)
		if ended && line == "" {
			return p.end(each)
		}
		if strings.TrimRight(line, " \t\r\n") == "" {
			if err := p.end(each); err != nil {
				return err
			}
			continue
		}
		if err := p.add(strings.TrimRight(line, "\r\n")); err != nil {
			return err
		}
	}
}

// readLine reads a line with its end; with io.EOF what the file ends with.
func readLine(in *bufio.Reader) (string, error) {
	var long []byte
	for {
		part, err := in.ReadSlice('\n')
		if err == nil && long == nil {
			return string(part), nil
		}
		long = append(long, part...)
		if len(long) > maxLine {
			return "", fmt.Errorf("%w: a line is longer than %d bytes", ErrFormat, maxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return string(long), err
		}
	}
}

// paragraph is the one that is being read.
type paragraph struct {
	want   map[string]bool
	fields map[string]string
	name   string // of the field that continuation lines belong to; "" when nobody wants it
	value  strings.Builder
	begun  bool
}

func (p *paragraph) add(line string) error {
	if line[0] == ' ' || line[0] == '\t' {
		switch {
		case !p.begun:
			return fmt.Errorf("%w: a paragraph begins with the continuation line %q", ErrFormat, clip(line))
		case p.name == "":
			return nil
		case p.value.Len()+len(line) > maxField:
			return fmt.Errorf("%w: field %s is longer than %d bytes", ErrFormat, p.name, maxField)
		}
		p.value.WriteByte('\n')
		p.value.WriteString(line)
		return nil
	}
	if line[0] == '#' {
		return nil
	}
	p.flush()
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" {
		return fmt.Errorf("%w: the line %q is no field", ErrFormat, clip(line))
	}
	p.begun = true
	if name = strings.ToLower(name); p.want[name] {
		p.name = name
		p.value.WriteString(strings.TrimSpace(value))
	}
	return nil
}

// flush ends a field. Of a field that stands twice the first counts.
func (p *paragraph) flush() {
	if p.name != "" {
		if _, twice := p.fields[p.name]; !twice {
			p.fields[p.name] = p.value.String()
		}
	}
	p.name = ""
	p.value.Reset()
}

func (p *paragraph) end(each func(map[string]string) error) error {
	p.flush()
	if !p.begun {
		return nil
	}
	p.begun = false
	err := each(p.fields)
	clear(p.fields)
	return err
}

// fields names what paragraphs is to keep.
func fields(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

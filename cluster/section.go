package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// Section is a part of the file that its owner decodes. Its zero value is a
// part that the file lacks.
type Section struct {
	v *value
	f *File
}

// IsZero tells whether the file lacks the section.
func (s Section) IsZero() bool { return s.v == nil }

// Equal tells whether two sections say the same, wherever they stand. Keys in
// another order are the same.
func (s Section) Equal(other Section) bool { return s.v.equal(other.v) }

func (v *value) equal(other *value) bool {
	if v == nil || other == nil {
		return v == other
	}
	if v.kind != other.kind || v.text != other.text ||
		len(v.items) != len(other.items) || len(v.entries) != len(other.entries) {
		return false
	}
	for i := range v.items {
		if !v.items[i].equal(other.items[i]) {
			return false
		}
	}
	for _, e := range v.entries {
		if counterpart := other.child(e.key); counterpart == nil || !e.value.equal(counterpart) {
			return false
		}
	}
	return true
}

// Keys lists the keys of a section that is a mapping, in the order of the
// file; nil for anything else.
func (s Section) Keys() []string {
	if s.v == nil {
		return nil
	}
	var keys []string
	for _, e := range s.v.entries {
		keys = append(keys, e.key)
	}
	return keys
}

// List gives the items of a section that is a list, or the section itself as
// the only item when it is not; nothing for the zero Section.
func (s Section) List() []Section {
	switch {
	case s.v == nil:
		return nil
	case s.v.kind != list:
		return []Section{s}
	}
	items := make([]Section, len(s.v.items))
	for i, item := range s.v.items {
		items[i] = Section{v: item, f: s.f}
	}
	return items
}

// At is the part of the section below key, as in Errorf; the zero Section when
// it is not there.
func (s Section) At(key string) Section {
	if s.v == nil {
		return Section{}
	}
	v, rest := s.v.descend(key)
	if rest != "" {
		return Section{}
	}
	return Section{v: v, f: s.f}
}

// Path is where the section stands, as in "dns" or "services.apt.check".
func (s Section) Path() string {
	if s.v == nil {
		return ""
	}
	return s.v.path
}

// Errorf makes an error that stands at a key of the section ("" the section
// itself, "forward" or "records[2].name" below it; a key with dots in it is
// found too, or written as in forward["example.com"]). The message begins with
// the key's full path, which format need not repeat. A key that is not there
// puts the error at the nearest one above it.
func (s Section) Errorf(key, format string, args ...any) *Error {
	file, pos, path := "", position{}, key
	if s.f != nil {
		file = s.f.Path
	}
	if s.v != nil {
		v, rest := s.v.descend(key)
		pos, path = v.pos, v.path
		if rest != "" && rest[0] != '[' {
			path += "."
		}
		path += rest
	}
	return newError(file, pos, path, format, args...)
}

// descend follows a path of keys as far as it goes; rest is what it did not
// find.
func (v *value) descend(path string) (at *value, rest string) {
	for path != "" {
		next, tail := v.step(path)
		if next == nil {
			return v, path
		}
		v, path = next, strings.TrimPrefix(tail, ".")
	}
	return v, ""
}

// step follows the longest key, or the index, that a path begins with.
func (v *value) step(path string) (next *value, tail string) {
	if bracketed, ok := strings.CutPrefix(path, "["); ok {
		if quoted, err := strconv.QuotedPrefix(bracketed); err == nil {
			if after, ok := strings.CutPrefix(bracketed[len(quoted):], "]"); ok {
				key, _ := strconv.Unquote(quoted)
				return v.child(key), after
			}
		}
		index, after, _ := strings.Cut(bracketed, "]")
		if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(v.items) {
			return v.items[i], after
		}
	}
	longest := -1
	for _, e := range v.entries {
		after, ok := strings.CutPrefix(path, e.key)
		if !ok || after != "" && after[0] != '.' && after[0] != '[' || len(e.key) <= longest {
			continue
		}
		next, tail, longest = e.value, after, len(e.key)
	}
	return next, tail
}

// Decode fills v, a pointer, strictly: an unknown key, a wrong type or a value
// out of a type's range is an Errors with positions; every mistake at once.
//
// Structs take the keys of their fields' yaml tags (`yaml:"every"`;
// `yaml:",inline"` for an embedded struct; "-" or no tag: no key). What the
// file does not say keeps the value that v had: defaults stand in v before.
// Beside the basic types it reads time.Duration ("10s", never a bare number),
// netip.Addr, netip.AddrPort, netip.Prefix, SecretRef ({file: /path}), Nodes
// (a node set of the file's nodes), Section (left for later), anything with
// UnmarshalText, pointers, slices, and maps with text keys. A slice of strings
// also takes one folded list instead of a YAML list: "10.1.0.[1-2]", and
// "@role" for the nodes of a role. The zero Section changes nothing.
func (s Section) Decode(v any) error {
	if s.v == nil {
		return nil
	}
	d := decoder{problems: &problems{file: s.f.Path}, f: s.f}
	if err := d.pointer(s.v, v); err != nil {
		return fmt.Errorf("cluster: decode %s: %w", s.v.path, err)
	}
	return d.err()
}

package cluster

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// maxDetails bounds the lines of a Change.
const maxDetails = 50

// Change is what differs between two cluster files.
type Change struct {
	// Sections names the parts that differ, in the order of the file:
	// "cluster", "domain" (the virtual domain too), "naming", "networks",
	// "roles", "nodes", "vips", "services", the services' sections ("dns"),
	// and after them "servers" when who takes part in Raft, where, or how many
	// vote is another.
	Sections []string
	// Details says what differs, a line each: "nodes: fbcn[17-20] added",
	// "services.apt.port: 3142 → 3143". At most some 50 lines.
	Details []string
}

// IsEmpty tells whether the files mean the same.
func (c Change) IsEmpty() bool { return len(c.Sections) == 0 }

// Has tells whether a part differs.
func (c Change) Has(section string) bool { return slices.Contains(c.Sections, section) }

// Diff compares the meaning of two cluster files: how it is written, and the
// order of mappings, does not count. Either may be nil, which is an empty
// file.
func Diff(before, after *File) Change {
	old, now := meaning(before), meaning(after)
	var c Change
	for _, key := range unionKeys(old, now) {
		a, _ := old.Get(key)
		b, _ := now.Get(key)
		lines := c.compare(key, a, b)
		if len(lines) == 0 {
			continue
		}
		section := key
		if key == "virtual_domain" {
			section = "domain"
		}
		if !c.Has(section) {
			c.Sections = append(c.Sections, section)
		}
		c.Details = append(c.Details, lines...)
	}
	if !reflect.DeepEqual(servers(before), servers(after)) {
		c.Sections = append(c.Sections, "servers")
	}
	if extra := len(c.Details) - maxDetails; extra > 0 {
		c.Details = append(c.Details[:maxDetails], fmt.Sprintf("and %d more", extra))
	}
	return c
}

// servers is what Raft is made of.
func servers(f *File) []string {
	if f == nil {
		return nil
	}
	list := []string{fmt.Sprint(f.Voters())}
	for _, n := range f.Servers() {
		list = append(list, n.Name+" "+n.Addresses[f.Main().Name].String())
	}
	return list
}

// meaning is the file as a tree of mappings, lists and scalars.
func meaning(f *File) Mapping[any] {
	if f == nil {
		return nil
	}
	m, _ := tree(reflect.ValueOf(f.Expanded().keys())).(Mapping[any])
	return m
}

// tree makes mappings of structs, by their yaml tags, and of Mappings of any
// type.
func tree(v reflect.Value) any {
	if !v.IsValid() {
		return nil
	}
	if m, ok := v.Interface().(interface{ widen() Mapping[any] }); ok {
		wide := m.widen()
		for i := range wide {
			wide[i].Value = tree(reflect.ValueOf(wide[i].Value))
		}
		return wide
	}
	switch v.Kind() {
	case reflect.Pointer:
		return tree(v.Elem())
	case reflect.Struct:
		return treeStruct(v)
	case reflect.Slice:
		items := make([]any, v.Len())
		for i := range items {
			items[i] = tree(v.Index(i))
		}
		return items
	}
	return v.Interface()
}

func treeStruct(v reflect.Value) any {
	var m Mapping[any]
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if name != "-" && (options != "omitempty" || !v.Field(i).IsZero()) {
			m = append(m, Named[any]{name, tree(v.Field(i))})
		}
	}
	return m
}

func unionKeys(a, b Mapping[any]) []string {
	keys := newNodes(nil)
	for _, m := range []Mapping[any]{a, b} {
		for i := range m {
			keys.add(m[i].Name)
		}
	}
	return keys.list()
}

// compare says in lines how b differs from a.
func (c *Change) compare(path string, a, b any) []string {
	if reflect.DeepEqual(a, b) {
		return nil
	}
	old, oldMapping := a.(Mapping[any])
	now, nowMapping := b.(Mapping[any])
	switch {
	case oldMapping && nowMapping:
		return c.compareMappings(path, old, now)
	case a == nil:
		return []string{path + ": added"}
	case b == nil:
		return []string{path + ": removed"}
	}
	return []string{fmt.Sprintf("%s: %s → %s", path, words(a), words(b))}
}

func (c *Change) compareMappings(path string, old, now Mapping[any]) []string {
	before, after := index(old), index(now)
	var lines, added, removed []string
	for _, key := range unionKeys(old, now) {
		a, had := before[key]
		b, has := after[key]
		switch {
		case !had:
			added = append(added, key)
		case !has:
			removed = append(removed, key)
		default:
			lines = append(lines, c.compare(join(path, key), a, b)...)
		}
	}
	if len(removed) > 0 {
		lines = append([]string{path + ": " + clipTo(Fold(removed), 200) + " removed"}, lines...)
	}
	if len(added) > 0 {
		lines = append([]string{path + ": " + clipTo(Fold(added), 200) + " added"}, lines...)
	}
	return lines
}

func index(m Mapping[any]) map[string]any {
	byName := make(map[string]any, len(m))
	for i := range m {
		byName[m[i].Name] = m[i].Value
	}
	return byName
}

// words writes a value on one line.
func words(v any) string {
	items, ok := v.([]any)
	if !ok {
		return clip(fmt.Sprint(v))
	}
	names := make([]string, len(items))
	for i, item := range items {
		names[i] = fmt.Sprint(item)
	}
	return clipTo(Fold(names), 120)
}

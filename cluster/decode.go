package cluster

import (
	"encoding"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// Nodes is a node set of the cluster file, expanded: node names in the order
// written, each once. Section.Decode reads it from "fbservice[1-4]",
// "@service" or a list of such sets, and refuses names that are no nodes.
type Nodes []string

// decoder fills Go values by reflection.
type decoder struct {
	*problems
	f *File
}

func (d *decoder) pointer(v *value, target any) error {
	rv := reflect.ValueOf(target)
	if rv.Kind() != reflect.Pointer || rv.IsNil() {
		return fmt.Errorf("target %T is no pointer", target)
	}
	d.decode(v, rv.Elem())
	return nil
}

func (d *decoder) decode(v *value, to reflect.Value) {
	if v.broken || d.known(v, to) {
		return
	}
	switch to.Kind() {
	case reflect.Pointer:
		fresh := reflect.New(to.Type().Elem())
		if !to.IsNil() {
			fresh.Elem().Set(to.Elem())
		}
		d.decode(v, fresh.Elem())
		to.Set(fresh)
	case reflect.Struct:
		d.structure(v, to)
	case reflect.Map:
		d.mapInto(v, to)
	case reflect.Slice:
		d.slice(v, to)
	case reflect.Interface:
		if to.NumMethod() == 0 {
			to.Set(reflect.ValueOf(v.plain()))
			return
		}
		panic(fmt.Sprintf("cluster: cannot decode into %s", to.Type()))
	default:
		d.basic(v, to)
	}
}

// known decodes the types that have a form of their own in the file.
func (d *decoder) known(v *value, to reflect.Value) bool {
	switch target := to.Addr().Interface().(type) {
	case *time.Duration:
		if x, ok := d.duration(v, math.MinInt64, math.MaxInt64); ok {
			*target = x
		}
	case *netip.Addr:
		if x, ok := d.addr(v); ok {
			*target = x
		}
	case *netip.Prefix:
		if x, ok := d.prefix(v); ok {
			*target = x
		}
	case *netip.AddrPort:
		d.addrPort(v, target)
	case *SecretRef:
		if x, ok := d.secretRef(v); ok {
			*target = x
		}
	case *Nodes:
		if x, ok := d.nodeRefs(v, d.f); ok {
			*target = x
		}
	case *Section:
		*target = Section{v: v, f: d.f}
	case encoding.TextUnmarshaler:
		s, ok := d.folded(v, "text")
		if !ok {
			break
		}
		if err := target.UnmarshalText([]byte(s)); err != nil {
			d.at(v.pos, v.path, "%s: %v", v.quoted(), err)
		}
	default:
		return false
	}
	return true
}

func (d *decoder) addrPort(v *value, target *netip.AddrPort) {
	s, ok := d.folded(v, "an address and a port such as 10.1.0.1:53")
	if !ok {
		return
	}
	x, err := netip.ParseAddrPort(s)
	if err != nil || x.Port() == 0 {
		d.at(v.pos, v.path, "%s is not an address and a port; write it as in 10.1.0.1:53 or [fd00::1]:53", v.quoted())
		return
	}
	*target = x
}

func (d *decoder) structure(v *value, to reflect.Value) {
	m, ok := d.mapping(v)
	if !ok {
		return
	}
	d.fields(m, to)
	m.done()
}

func (d *decoder) fields(m *mapping, to reflect.Value) {
	for i := range to.NumField() {
		field := to.Type().Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		switch {
		case !field.IsExported() && !field.Anonymous || name == "-":
		case options == "inline" && field.Type.Kind() == reflect.Struct:
			d.fields(m, to.Field(i))
		case name != "":
			if child := m.get(name); child != nil {
				d.decode(child, to.Field(i))
			}
		}
	}
}

func (d *decoder) mapInto(v *value, to reflect.Value) {
	if to.Type().Key().Kind() != reflect.String {
		panic(fmt.Sprintf("cluster: cannot decode into %s: its keys are no strings", to.Type()))
	}
	m, ok := d.mapping(v)
	if !ok {
		return
	}
	fresh := reflect.MakeMapWithSize(to.Type(), len(m.v.entries))
	for _, e := range m.v.entries {
		element := reflect.New(to.Type().Elem()).Elem()
		d.decode(e.value, element)
		fresh.SetMapIndex(reflect.ValueOf(e.key).Convert(to.Type().Key()), element)
	}
	to.Set(fresh)
}

func (d *decoder) slice(v *value, to reflect.Value) {
	if v.kind != list {
		if to.Type().Elem().Kind() == reflect.String && v.kind == text {
			d.foldedSlice(v, to)
			return
		}
		d.wrongKind(v, "a list such as [a, b]")
		return
	}
	fresh := reflect.MakeSlice(to.Type(), len(v.items), len(v.items))
	for i, item := range v.items {
		d.decode(item, fresh.Index(i))
	}
	to.Set(fresh)
}

// foldedSlice reads one text as a folded list or, with an @ in it, as a node
// set.
func (d *decoder) foldedSlice(v *value, to reflect.Value) {
	if strings.ContainsAny(v.text, " \t\n") {
		d.at(v.pos, v.path, "%s where a list belongs; write it as in [a, b]", v.quoted())
		return
	}
	var items []string
	if strings.Contains(v.text, "@") {
		var ok bool
		if items, ok = d.nodeRefs(v, d.f); !ok {
			return
		}
	} else {
		var err error
		if items, err = ExpandList(v.text); err != nil {
			d.at(v.pos, v.path, "%v", err)
			return
		}
	}
	fresh := reflect.MakeSlice(to.Type(), len(items), len(items))
	for i, item := range items {
		fresh.Index(i).SetString(item)
	}
	to.Set(fresh)
}

func (d *decoder) basic(v *value, to reflect.Value) {
	switch to.Kind() {
	case reflect.String:
		if s, ok := d.text(v); ok {
			to.SetString(s)
		}
	case reflect.Bool:
		if b, ok := d.boolean(v); ok {
			to.SetBool(b)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		bits := to.Type().Bits()
		if n, ok := d.integer(v, math.MinInt64>>(64-bits), math.MaxInt64>>(64-bits), ""); ok {
			to.SetInt(n)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		most := uint64(math.MaxUint64) >> (64 - to.Type().Bits())
		if n, ok := d.integer(v, 0, int64(min(most, math.MaxInt64)), ""); ok {
			to.SetUint(uint64(n))
		}
	case reflect.Float32, reflect.Float64:
		if x, ok := d.float(v); ok {
			to.SetFloat(x)
		}
	default:
		panic(fmt.Sprintf("cluster: cannot decode into %s", to.Type()))
	}
}

// plain gives the value in the types that any YAML or JSON library knows. A
// mapping loses the order of its keys.
func (v *value) plain() any {
	switch v.kind {
	case object:
		m := make(map[string]any, len(v.entries))
		for _, e := range v.entries {
			m[e.key] = e.value.plain()
		}
		return m
	case list:
		items := make([]any, len(v.items))
		for i, item := range v.items {
			items[i] = item.plain()
		}
		return items
	default:
		return v.scalar()
	}
}

package cluster

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

const (
	maxFileSize = 4 << 20 // bytes; maxKeys nodes written one by one, with all they may have, fit
	maxDepth    = 32      // of mappings and lists inside each other
	maxKeys     = 10_000  // of one mapping
)

// position is where something stands in the file, from 1; zero unknown.
type position struct{ line, column int }

// kind is what a value is in YAML.
type kind uint8

const (
	null kind = iota
	text
	number
	boolean
	object
	list
)

// String names a kind for a message.
func (k kind) String() string {
	return [...]string{"nothing", "text", "a number", "true or false", "a mapping", "a list"}[k]
}

// value is a node of the file: what this package reads instead of the YAML
// library's tree. Scalars keep the text as written, so that "001" and "1.10"
// stay what the admin typed.
type value struct {
	kind    kind
	pos     position
	path    string // "vips.dns.vrid"
	text    string // of a scalar
	entries []entry
	items   []*value
	broken  bool // a mistake was noted here already: say no more
}

type entry struct {
	key   string
	pos   position
	value *value
}

// child finds the value of a key; nil when absent.
func (v *value) child(key string) *value {
	if v == nil {
		return nil
	}
	for i := range v.entries {
		if v.entries[i].key == key {
			return v.entries[i].value
		}
	}
	return nil
}

// quoted is the value for a message.
func (v *value) quoted() string {
	switch {
	case v.kind == text:
		return strconv.Quote(clip(v.text))
	case v.kind == number || v.kind == boolean:
		return clip(v.text)
	}
	return v.kind.String()
}

// join makes the path of a key below another.
func join(path, key string) string {
	if strings.ContainsAny(key, ". \"") {
		return path + "[" + strconv.Quote(key) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// parseTree reads YAML into values. It returns nil after a mistake in the
// YAML itself; duplicate keys, anchors and the like are noted and left out.
func parseTree(data []byte, p *problems) *value {
	if len(data) > maxFileSize {
		p.at(position{}, "", "the file has %d bytes; at most %d are read", len(data), maxFileSize)
		return nil
	}
	if at, ok := firstInvalid(data); ok {
		p.at(at, "", "not UTF-8 text; save the file as UTF-8")
		return nil
	}
	tokens := lexer.Tokenize(strings.TrimPrefix(string(data), "\ufeff"))
	if at, message := check(tokens); message != "" {
		p.at(at, "", "%s", message)
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		syntaxError(p, err)
		return nil
	}
	return document(file, p)
}

// firstInvalid finds the first byte that is not UTF-8, or is a control
// character that YAML forbids.
func firstInvalid(data []byte) (position, bool) {
	pos := position{1, 1}
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		control := r < ' ' && r != '\n' && r != '\r' && r != '\t'
		if r == utf8.RuneError && size == 1 || control || r == 0x7f {
			return pos, true
		}
		if pos.column++; r == '\n' {
			pos = position{pos.line + 1, 1}
		}
		i += size
	}
	return position{}, false
}

func syntaxError(p *problems, err error) {
	var syntax *yaml.SyntaxError
	if !errors.As(err, &syntax) {
		p.at(position{}, "", "not YAML: %v", err)
		return
	}
	p.at(tokenPosition(syntax.Token), "", "%s", syntaxMessage(syntax.Message))
}

// syntaxMessage says what to look for when the YAML library gives up; it often
// does so one line after the mistake.
func syntaxMessage(message string) string {
	hints := []struct{ part, hint string }{
		{"tab character", ""}, {"'\t'", ""},
		{"reserved character", `write the value in quotes, as in "@service"`},
		{"directive", `write the value in quotes, as in "@service"`},
		{"non-map value", "a key has a colon and a blank after it, as in cluster: foobar"},
		{"not allowed in this context", "look here and in the line above for a key that is indented otherwise than its neighbours, " +
			"a quotation mark that is missing, a bracket too many, or a colon in a value without quotes"},
		{"must be specified", "a brace or a bracket is not closed, here or in a line above"},
	}
	for _, h := range hints {
		if strings.Contains(message, h.part) {
			if h.hint == "" {
				return "a tab; YAML is indented with spaces"
			}
			return "not YAML: " + message + "; " + h.hint
		}
	}
	return "not YAML: " + message
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{}
	}
	return position{t.Position.Line, t.Position.Column}
}

func document(file *ast.File, p *problems) *value {
	var body ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil {
			body = doc.Body
			break
		}
	}
	if body == nil {
		return &value{kind: object, pos: position{1, 1}}
	}
	c := converter{problems: p}
	root := c.value(body, "", 0)
	if root != nil && root.kind == object {
		root.pos = position{1, 1}
	}
	return root
}

// converter turns the YAML library's tree into values.
type converter struct{ *problems }

func (c converter) value(n ast.Node, path string, depth int) *value {
	v := &value{path: path}
	if n == nil {
		return v
	}
	v.pos = tokenPosition(n.GetToken())
	if depth > maxDepth {
		v.broken = true
		c.at(v.pos, path, "more than %d levels inside each other", maxDepth)
		return v
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		v.kind = object
		c.entries(v, n.Values, depth)
	case *ast.MappingValueNode:
		v.kind = object
		c.entries(v, []*ast.MappingValueNode{n}, depth)
	case *ast.SequenceNode:
		v.kind = list
		for i, item := range n.Values {
			v.items = append(v.items, c.value(item, fmt.Sprintf("%s[%d]", path, i), depth+1))
		}
	default:
		c.scalar(v, n)
	}
	return v
}

func (c converter) scalar(v *value, n ast.Node) {
	refuse := func(format string, args ...any) {
		v.broken = true
		c.at(v.pos, v.path, format, args...)
	}
	switch n := n.(type) {
	case *ast.StringNode:
		v.kind, v.text = text, n.Value
	case *ast.LiteralNode:
		v.kind, v.text = text, n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		v.kind, v.text = number, n.GetToken().Value
	case *ast.BoolNode:
		v.kind, v.text = boolean, n.GetToken().Value
	case *ast.NullNode:
		v.kind = null
	case *ast.AnchorNode, *ast.AliasNode:
		refuse("anchors and aliases (& and *) are not read; node sets, roles and vip_defaults say things once")
	case *ast.TagNode:
		refuse("tags (!) are not read; write the plain value")
	default:
		refuse("a %s is not read here", strings.ToLower(n.Type().YAMLName()))
	}
}

func (c converter) entries(v *value, pairs []*ast.MappingValueNode, depth int) {
	if len(pairs) > 0 {
		v.pos = tokenPosition(pairs[0].Key.GetToken())
	}
	if len(pairs) > maxKeys { // in braces; the guard counts the others
		v.broken = true
		c.at(v.pos, v.path, "more than %d keys in one mapping", maxKeys)
		return
	}
	seen := make(map[string]position, len(pairs))
	for _, pair := range pairs {
		key, ok := c.key(pair.Key, v.path)
		if !ok {
			continue
		}
		pos := tokenPosition(pair.Key.GetToken())
		if first, twice := seen[key]; twice {
			c.at(pos, join(v.path, key), "stands twice; the first is in line %d. Keep one", first.line)
			continue
		}
		seen[key] = pos
		v.entries = append(v.entries, entry{key, pos, c.value(pair.Value, join(v.path, key), depth+1)})
	}
}

func (c converter) key(n ast.MapKeyNode, path string) (string, bool) {
	t := n.GetToken()
	switch n.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		if t.Value != "" {
			return t.Value, true
		}
		c.at(tokenPosition(t), path, "an empty key; give it a name")
	case *ast.MergeKeyNode:
		c.at(tokenPosition(t), path, "merge keys (<<) are not read; roles and vip_defaults say things once")
	default:
		c.at(tokenPosition(t), path, "a key must be plain text")
	}
	return "", false
}

package dns

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// name is a domain name in wire form (RFC 1035 §3.1), in lower case, the root
// label included: "\x03apt\x07service\x07virtual\x00". Keys of every table are
// names, so that a query is looked up by the bytes it came with.
type name string

const root name = "\x00"

// Sizes on the wire, in bytes (RFC 1035 §2.3.4, §3.3).
const (
	maxName   = 255
	maxLabel  = 63
	maxString = 255
)

// parseName reads a name as people write it, without escapes; a trailing dot
// may be left out, and "." is the root.
func parseName(s string) (name, error) {
	trimmed := strings.TrimSuffix(s, ".")
	if trimmed == "" {
		if s != "." {
			return "", fmt.Errorf("dns: empty name")
		}
		return root, nil
	}
	n, ok := root.child(strings.Split(trimmed, ".")...)
	if !ok {
		return "", fmt.Errorf("dns: %q is no domain name: labels have 1 to %d bytes, the whole at most %d", s, maxLabel, maxName)
	}
	return n, nil
}

// child puts labels in front of a name. It is not ok when one is empty or too
// long, or the whole is.
func (n name) child(labels ...string) (name, bool) {
	size := len(n)
	for _, l := range labels {
		if l == "" || len(l) > maxLabel {
			return "", false
		}
		size += 1 + len(l)
	}
	if size > maxName {
		return "", false
	}
	var b strings.Builder
	b.Grow(size)
	for _, l := range labels {
		b.WriteByte(byte(len(l)))
		for i := range len(l) {
			b.WriteByte(lower(l[i]))
		}
	}
	b.WriteString(string(n))
	return name(b.String()), true
}

// parent is the name without its first label; the root's is the root.
func (n name) parent() name {
	if n == root {
		return root
	}
	return n[1+int(n[0]):]
}

// below tells whether n is origin or a name under it.
func (n name) below(origin name) bool {
	for len(n) > len(origin) {
		n = n.parent()
	}
	return n == origin
}

// String gives the presentation form with a trailing dot, odd bytes escaped
// (RFC 4343 §2.1).
func (n name) String() string {
	s, _, _ := dns.UnpackDomainName([]byte(n), 0) // a name is well-formed
	return s
}

// lower folds ASCII only, as RFC 4343 §3 has it.
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

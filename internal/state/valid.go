package state

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"unicode/utf8"
)

// Limits of what the tables hold. A command beyond them is refused with
// ErrInvalid. MaxOutput is the exception: output is cut, not refused.
const (
	MaxName  = 255       // bytes in a name, an ID, a tag or a document's kind
	MaxKey   = 512       // bytes in a key, of the KV table or of a document
	MaxValue = 512 << 10 // bytes in a value, of the KV table or of a document
	MaxNotes = 4 << 10   // bytes in a check's notes

	MaxTags      = 128 // tags of a service
	MaxMeta      = 64  // pairs of metadata of a node or a service
	MaxMetaKey   = 128 // bytes in a metadata key
	MaxMetaValue = 512 // bytes in a metadata value
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// checkName refuses what can't name something: empty, too long, not UTF-8, or
// with control characters (a NUL would merge two parts of an index key).
func checkName(what, name string) error {
	switch {
	case name == "":
		return invalid("%s is empty", what)
	case len(name) > MaxName:
		return invalid("%s has %d bytes, more than %d: %.32q...", what, len(name), MaxName, name)
	case !utf8.ValidString(name):
		return invalid("%s is not UTF-8: %.64q", what, name)
	}
	for i := 0; i < len(name); i++ {
		if name[i] < ' ' || name[i] == 0x7f {
			return invalid("%s has a control character: %.64q", what, name)
		}
	}
	return nil
}

// checkBytes refuses a key or a value that is too long; name says of what the value
// is.
func checkBytes(what string, name func() string, key string, value []byte) error {
	switch {
	case len(key) > MaxKey:
		return invalid("%s has %d bytes, more than %d: %.32q...", what, len(key), MaxKey, key)
	case len(value) > MaxValue:
		return invalid("value of %s has %d bytes, more than %d", name(), len(value), MaxValue)
	}
	return nil
}

func checkMeta(what string, meta map[string]string) error {
	if len(meta) > MaxMeta {
		return invalid("%s has %d pairs of metadata, more than %d", what, len(meta), MaxMeta)
	}
	for _, k := range slices.Sorted(maps.Keys(meta)) { // sorted: the same error on every replica
		if k == "" || len(k) > MaxMetaKey {
			return invalid("%s: metadata key has %d bytes, not 1 to %d: %.32q", what, len(k), MaxMetaKey, k)
		}
		if len(meta[k]) > MaxMetaValue {
			return invalid("%s: metadata %q has %d bytes, more than %d", what, k, len(meta[k]), MaxMetaValue)
		}
	}
	return nil
}

// cleanAddr unmaps IPv4 in IPv6, so that equal addresses are equal values. An
// address with a zone means nothing on another machine.
func cleanAddr(what string, a netip.Addr) (netip.Addr, error) {
	if a.Zone() != "" {
		return a, invalid("%s: address %s has a zone, which no other node knows", what, a)
	}
	return a.Unmap(), nil
}

// cleanMeta copies, and makes empty the same as absent.
func cleanMeta(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

// cleanNode returns the row that a registration asks for, sharing nothing with
// the command.
func cleanNode(n Node) (*Node, error) {
	if err := checkName("node name", n.Name); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("node %q", n.Name)
	if n.ID != "" {
		if err := checkName(what+": ID", n.ID); err != nil {
			return nil, err
		}
	}
	if !n.Address.IsValid() {
		return nil, invalid("%s has no address", what)
	}
	var err error
	if n.Address, err = cleanAddr(what, n.Address); err != nil {
		return nil, err
	}
	if err := checkMeta(what, n.Meta); err != nil {
		return nil, err
	}
	n.Meta = cleanMeta(n.Meta)
	return &n, nil
}

func cleanService(node *Node, s Service) (*Service, error) {
	if s.ID == "" {
		s.ID = s.Name
	}
	what := fmt.Sprintf("service %q of node %q", s.ID, node.Name)
	if s.Node != "" && Fold(s.Node) != Fold(node.Name) {
		return nil, invalid("%s says it is on node %q", what, s.Node)
	}
	s.Node = node.Name
	if err := checkName(what+": name", s.Name); err != nil {
		return nil, err
	}
	if err := checkName(what+": ID", s.ID); err != nil {
		return nil, err
	}
	if len(s.Tags) > MaxTags {
		return nil, invalid("%s has %d tags, more than %d", what, len(s.Tags), MaxTags)
	}
	for _, tag := range s.Tags {
		if err := checkName(what+": tag", tag); err != nil {
			return nil, err
		}
	}
	if err := checkMeta(what, s.Meta); err != nil {
		return nil, err
	}
	var err error
	if s.Address, err = cleanAddr(what, s.Address); err != nil {
		return nil, err
	}
	s.Tags, s.Meta = cleanTags(s.Tags), cleanMeta(s.Meta)
	return &s, nil
}

func cleanTags(tags []string) []string {
	if len(tags) == 0 {
		return nil
	}
	return slices.Clone(tags)
}

// cleanCheck leaves ServiceName and ServiceTags empty: they are the service's
// to say.
func cleanCheck(node *Node, c Check) (*Check, error) {
	if c.ID == "" {
		c.ID = c.Name
	}
	if c.Name == "" {
		c.Name = c.ID
	}
	if c.Status == "" {
		c.Status = Critical
	}
	what := fmt.Sprintf("check %q of node %q", c.ID, node.Name)
	if c.Node != "" && Fold(c.Node) != Fold(node.Name) {
		return nil, invalid("%s says it is on node %q", what, c.Node)
	}
	c.Node = node.Name
	if err := checkName(what+": ID", c.ID); err != nil {
		return nil, err
	}
	if err := checkName(what+": name", c.Name); err != nil {
		return nil, err
	}
	if err := checkStatus(what, c.Status); err != nil {
		return nil, err
	}
	if len(c.Notes) > MaxNotes {
		return nil, invalid("%s: notes have %d bytes, more than %d", what, len(c.Notes), MaxNotes)
	}
	if len(c.Type) > MaxName {
		return nil, invalid("%s: type has %d bytes, more than %d", what, len(c.Type), MaxName)
	}
	c.Output = cutOutput(c.Output)
	c.ServiceName, c.ServiceTags = "", nil
	return &c, nil
}

func checkStatus(what string, s Status) error {
	switch s {
	case Passing, Warning, Critical:
		return nil
	}
	return invalid("%s: status %.32q is not one of %q, %q, %q", what, s, Passing, Warning, Critical)
}

// cutOutput shortens a check's output to MaxOutput, between two runes.
func cutOutput(s string) string {
	if len(s) <= MaxOutput {
		return s
	}
	end := MaxOutput
	for end > MaxOutput-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	if !utf8.RuneStart(s[end]) {
		end = MaxOutput // not UTF-8 anyway
	}
	return s[:end]
}

func equalNode(a, b *Node) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Address == b.Address && maps.Equal(a.Meta, b.Meta)
}

func equalService(a, b *Service) bool {
	return a.Node == b.Node && a.ID == b.ID && a.Name == b.Name && a.Address == b.Address && a.Port == b.Port &&
		a.Weights == b.Weights && slices.Equal(a.Tags, b.Tags) && maps.Equal(a.Meta, b.Meta)
}

func equalCheck(a, b *Check) bool {
	return a.Node == b.Node && a.ID == b.ID && a.Name == b.Name && a.Status == b.Status &&
		a.Notes == b.Notes && a.Output == b.Output && a.Type == b.Type &&
		a.ServiceID == b.ServiceID && a.ServiceName == b.ServiceName && slices.Equal(a.ServiceTags, b.ServiceTags)
}

func equalEntry(a, b *Entry) bool {
	return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.Flags == b.Flags &&
		a.LockIndex == b.LockIndex && a.Session == b.Session
}

func equalDocument(a, b *Document) bool {
	return a.Kind == b.Kind && a.Key == b.Key && bytes.Equal(a.Value, b.Value)
}

// Package acl decides what the holder of a token may do. It is pure: rules as
// text become Rules, several of them become an Authorizer, and an Authorizer
// answers questions. Who has which token, and where tokens are kept, is api's.
//
// The language is the part of Consul's that makes sense without a service mesh
// and namespaces: rules for keys, services, nodes, sessions, agents and events
// by name or prefix, and one policy each for operator, keyring and acl.
package acl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Resource is what a rule speaks of, in the word that rules use.
type Resource string

// The resources. The first six have names; the others are one thing each.
const (
	Key      Resource = "key"
	Service  Resource = "service"
	Node     Resource = "node"
	Session  Resource = "session" // by the node's name
	Agent    Resource = "agent"   // by the node's name
	Event    Resource = "event"
	Operator Resource = "operator"
	Keyring  Resource = "keyring"
	ACL      Resource = "acl"
)

func named() []Resource  { return []Resource{Key, Service, Node, Session, Agent, Event} }
func single() []Resource { return []Resource{Operator, Keyring, ACL} }

// Level is how much a rule allows; each holds those below it.
type Level int

// The levels. Unset is that of a name that no rule speaks of.
const (
	Unset Level = iota
	Deny
	Read
	Write
)

func (l Level) String() string {
	switch l {
	case Deny:
		return "deny"
	case Read:
		return "read"
	case Write:
		return "write"
	default:
		return "unset"
	}
}

// parseLevel reads a policy. Consul's "list" is a read of keys: here who may
// read a key may list it.
func parseLevel(r Resource, text string) (Level, error) {
	switch text {
	case "deny":
		return Deny, nil
	case "read":
		return Read, nil
	case "write":
		return Write, nil
	case "list":
		if r == Key {
			return Read, nil
		}
	}
	return Unset, fmt.Errorf("policy %.40q: want deny, read or write", text)
}

// rule is one line of a policy.
type rule struct {
	resource Resource
	name     string // "" for single resources, and for the prefix of everything
	prefix   bool   // the name is one
	level    Level
}

// Rules are a policy's. The zero value says nothing.
type Rules struct{ list []rule }

// Bounds of a policy.
const (
	MaxRules = 64 << 10 // bytes of its text
	maxCount = 4096     // rules in it
)

// Parse reads a policy's text, Consul's HCL or its JSON. The error names the
// line and column of the first mistake.
func Parse(text string) (Rules, error) {
	if len(text) > MaxRules {
		return Rules{}, fmt.Errorf("the rules have %d bytes; at most %d", len(text), MaxRules)
	}
	var list []rule
	var err error
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		list, err = parseJSON(text)
	} else {
		list, err = parseHCL(text)
	}
	if err != nil {
		return Rules{}, err
	}
	if len(list) > maxCount {
		return Rules{}, fmt.Errorf("there are %d rules; at most %d", len(list), maxCount)
	}
	return Rules{list}, nil
}

// subject reads what a rule is about out of its first word.
func subject(word string) (r Resource, prefix bool, err error) {
	base, prefix := strings.CutSuffix(word, "_prefix")
	r = Resource(base)
	switch {
	case slices.Contains(named(), r):
		return r, prefix, nil
	case !prefix && slices.Contains(single(), r):
		return r, false, nil
	case slices.Contains([]string{"query", "mesh", "peering", "namespace", "partition", "identity"}, base):
		return "", false, fmt.Errorf("%s: not offered here, so there is nothing to allow", word)
	default:
		return "", false, fmt.Errorf("%.40q: no such resource; want key, service, node, session, agent, event (each also with _prefix), operator, keyring or acl", word)
	}
}

// isSingle tells whether a resource has no names.
func isSingle(r Resource) bool { return slices.Contains(single(), r) }

// rulesFor makes the rule of a subject that was read.
func ruleFor(word, name, policy string) (rule, error) {
	r, prefix, err := subject(word)
	if err != nil {
		return rule{}, err
	}
	level, err := parseLevel(r, policy)
	if err != nil {
		return rule{}, fmt.Errorf("%s %q: %w", word, name, err)
	}
	if name == "" && !prefix && !isSingle(r) {
		return rule{}, fmt.Errorf("%s: the name is empty; %s_prefix %q means all of them", word, word, "")
	}
	return rule{resource: r, name: fold(r, name), prefix: prefix, level: level}, nil
}

// fold is the form in which names are compared: nodes and services are names
// of the DNS, without regard to case; keys and events are bytes.
func fold(r Resource, name string) string {
	if r == Key || r == Event {
		return name
	}
	return strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}, name)
}

// Authorizer answers what somebody may do. The zero value allows nothing.
type Authorizer struct {
	all   bool
	exact map[Resource]map[string]Level
	// prefixes are sorted by name: those that a name begins with are found
	// from the longest.
	prefixes map[Resource][]rule
}

// Everything is the authorizer of who may do anything.
func Everything() *Authorizer { return &Authorizer{all: true} }

// Merge makes one authorizer of a token's policies. Where several speak of the
// same name or prefix, deny wins, then write, then read; what none speaks of is
// denied.
func Merge(policies ...Rules) *Authorizer {
	a := &Authorizer{exact: map[Resource]map[string]Level{}, prefixes: map[Resource][]rule{}}
	type key struct {
		resource Resource
		name     string
	}
	prefixes := map[key]Level{}
	for _, p := range policies {
		for _, r := range p.list {
			if r.prefix {
				k := key{r.resource, r.name}
				prefixes[k] = stronger(prefixes[k], r.level)
				continue
			}
			if a.exact[r.resource] == nil {
				a.exact[r.resource] = map[string]Level{}
			}
			a.exact[r.resource][r.name] = stronger(a.exact[r.resource][r.name], r.level)
		}
	}
	for k, level := range prefixes {
		a.prefixes[k.resource] = append(a.prefixes[k.resource], rule{k.resource, k.name, true, level})
	}
	for _, list := range a.prefixes {
		slices.SortFunc(list, func(x, y rule) int { return cmp.Compare(x.name, y.name) })
	}
	return a
}

func stronger(a, b Level) Level {
	if a == Deny || b == Deny {
		return Deny
	}
	return max(a, b)
}

// May tells whether something may be done to a resource. The rule for the name
// itself counts, then that of the longest prefix.
func (a *Authorizer) May(r Resource, name string, wanted Level) bool {
	return a != nil && (a.all || a.level(r, fold(r, name)) >= max(wanted, Read))
}

func (a *Authorizer) level(r Resource, name string) Level {
	if isSingle(r) {
		name = ""
	}
	if level, ok := a.exact[r][name]; ok {
		return level
	}
	list := a.prefixes[r]
	for length := len(name); length >= 0; length-- {
		at, ok := slices.BinarySearchFunc(list, name[:length], func(x rule, n string) int { return cmp.Compare(x.name, n) })
		if ok {
			return list[at].level
		}
	}
	return Unset
}

// MayTree tells whether everything below a prefix may be changed: the prefix
// itself, and every name and prefix below it that a rule speaks of.
func (a *Authorizer) MayTree(r Resource, prefix string, wanted Level) bool {
	if a == nil || a.all {
		return a != nil
	}
	prefix, wanted = fold(r, prefix), max(wanted, Read)
	if a.prefixLevel(r, prefix) < wanted {
		return false
	}
	for name, level := range a.exact[r] {
		if strings.HasPrefix(name, prefix) && level < wanted {
			return false
		}
	}
	for _, p := range a.prefixes[r] {
		if strings.HasPrefix(p.name, prefix) && p.level < wanted {
			return false
		}
	}
	return true
}

// prefixLevel is the level of the names below a prefix that nothing more exact
// speaks of.
func (a *Authorizer) prefixLevel(r Resource, prefix string) Level {
	list := a.prefixes[r]
	for length := len(prefix); length >= 0; length-- {
		at, ok := slices.BinarySearchFunc(list, prefix[:length], func(x rule, n string) int { return cmp.Compare(x.name, n) })
		if ok {
			return list[at].level
		}
	}
	return Unset
}

var errTrailing = errors.New("something follows the end")

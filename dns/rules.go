package dns

import (
	"maps"
	"slices"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/internal/state"
)

// serviceSection is what `dns: services:` says of one service; what it leaves
// out is as for all.
type serviceSection struct {
	TTL         *time.Duration `yaml:"ttl"`
	NegativeTTL *time.Duration `yaml:"negative_ttl"`
	OnlyPassing *bool          `yaml:"only_passing"`
	NeverEmpty  *bool          `yaml:"never_empty"`
	OwnFirst    *bool          `yaml:"own_first"`
}

// serviceRules reads `dns: services:`, by folded name.
func (d *decoder) serviceRules(raw map[string]serviceSection) map[string]serviceSection {
	out := map[string]serviceSection{}
	for _, name := range sortedKeys(raw) {
		at := "services." + name
		folded := state.Fold(name)
		_, ok := root.child(folded)
		switch {
		case !ok || strings.HasPrefix(folded, "_") || strings.Contains(folded, "."):
			d.errorf(at, "%q is no service that DNS answers for: 1 to %d bytes, no dot, no leading underscore", name, maxLabel)
			continue
		case has(out, folded):
			d.errorf(at, "%s stands here twice", folded)
			continue
		}
		s := raw[name]
		if s.TTL != nil {
			d.ttl(at+".ttl", *s.TTL)
		}
		if s.NegativeTTL != nil {
			d.ttl(at+".negative_ttl", *s.NegativeTTL)
		}
		out[folded] = s
	}
	return out
}

func has[V any](m map[string]V, key string) bool {
	_, ok := m[key]
	return ok
}

// rules say how one service is answered for.
type rules struct {
	ttl         uint32 // seconds
	ownNegative bool
	negativeTTL uint32 // seconds, with ownNegative
	onlyPassing bool
	neverEmpty  bool
	ownFirst    bool
}

// rulesOf finds a service's rules: what `dns: services:` says of it, else its
// own entry in the cluster file (a TTL), else what holds for all.
func (c *compiler) rulesOf(service string) rules {
	r := rules{ttl: seconds(c.ttl), onlyPassing: c.onlyPassing, neverEmpty: c.neverEmpty, ownFirst: c.ownFirst}
	i := slices.IndexFunc(c.file.Services, func(s cluster.Service) bool {
		return s.TTL > 0 && strings.EqualFold(s.Name, service)
	})
	if i >= 0 {
		r.ttl = seconds(c.file.Services[i].TTL)
	}
	own := c.rules[service]
	if own.TTL != nil {
		r.ttl = seconds(*own.TTL)
	}
	if own.NegativeTTL != nil {
		r.ownNegative, r.negativeTTL = true, seconds(*own.NegativeTTL)
	}
	set(&r.onlyPassing, own.OnlyPassing)
	set(&r.neverEmpty, own.NeverEmpty)
	set(&r.ownFirst, own.OwnFirst)
	return r
}

func set(to *bool, said *bool) {
	if said != nil {
		*to = *said
	}
}

// traits are what the rules make of a node; nil when that is nothing.
func (r rules) traits(why *extended) *traits {
	t := traits{why: why, ownFirst: r.ownFirst, ownNegative: r.ownNegative, negativeTTL: r.negativeTTL}
	if t == (traits{}) {
		return nil
	}
	return &t
}

// lastGood remembers who answered last for services that are never empty, by
// service and tag. It is this node's own memory: two nodes may differ, and it
// is empty after a restart, when all instances count.
type lastGood map[string][]instanceKey

type instanceKey struct{ node, id string }

func goodKey(service, tag string) string { return service + "\x00" + tag }

func (g lastGood) remember(service, tag string, chosen []state.Instance) {
	keys := make([]instanceKey, 0, len(chosen))
	for _, i := range chosen {
		keys = append(keys, instanceKey{state.Fold(i.Node.Name), i.Service.ID})
	}
	g[goodKey(service, tag)] = keys
}

// among finds the instances that were good last and are still registered; all
// of them, and not known, when none is known to have been.
func (g lastGood) among(service, tag string, all []state.Instance) (found []state.Instance, known bool) {
	keys := g[goodKey(service, tag)]
	for _, i := range all {
		if slices.Contains(keys, instanceKey{state.Fold(i.Node.Name), i.Service.ID}) {
			found = append(found, i)
		}
	}
	if len(found) == 0 {
		return all, false
	}
	return found, true
}

// forget drops what is known of a service that is gone.
func (g lastGood) forget(service string) {
	maps.DeleteFunc(g, func(key string, _ []instanceKey) bool {
		return strings.HasPrefix(key, service+"\x00")
	})
}

// alive leaves out instances on nodes that the gossip knows to have failed,
// unless that would leave none.
func alive(snap *state.Snapshot, list []state.Instance) []state.Instance {
	var living []state.Instance
	for _, i := range list {
		m, ok := snap.Member(i.Node.Name)
		if !ok || m.Liveness != state.Failed && m.Liveness != state.Left {
			living = append(living, i)
		}
	}
	if len(living) == 0 {
		return list
	}
	return living
}

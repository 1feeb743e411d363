package ipvs

import (
	"fmt"
	"slices"
)

// Kind is what a Change does.
type Kind uint8

// The kinds, one message to the kernel each.
const (
	AddService Kind = iota + 1
	EditService
	RemoveService // and all its servers
	AddServer
	EditServer
	RemoveServer
)

// Change is one step from what is to what should be.
type Change struct {
	Kind    Kind
	Service Service // of RemoveService and of servers, only the key counts
	Server  Server
}

// String is close to what an operator would type.
func (c Change) String() string {
	switch c.Kind {
	case AddService:
		return fmt.Sprintf("add %v %s", c.Service.Key, c.Service.words())
	case EditService:
		return fmt.Sprintf("change %v to %s", c.Service.Key, c.Service.words())
	case RemoveService:
		return fmt.Sprintf("remove %v", c.Service.Key)
	case AddServer:
		return fmt.Sprintf("add %v to %v with weight %d", c.Server.Addr, c.Service.Key, c.Server.Weight)
	case EditServer:
		return fmt.Sprintf("change %v of %v to weight %d", c.Server.Addr, c.Service.Key, c.Server.Weight)
	case RemoveServer:
		return fmt.Sprintf("remove %v from %v", c.Server.Addr, c.Service.Key)
	}
	return fmt.Sprintf("change-%d of %v", c.Kind, c.Service.Key)
}

func (s Service) words() string {
	if s.Persistence == 0 {
		return s.Scheduler
	}
	return fmt.Sprintf("%s, persistent for %v", s.Scheduler, s.Persistence)
}

// Diff gives the changes that make have what want says: of services that are
// in both, of want alone (added) and of have alone (removed). Which services
// are anyone's business is the caller's choice. Servers are added and changed
// before any is removed, so that no service is without one on the way.
func Diff(have, want []Service) []Change {
	var changes []Change
	for _, h := range have {
		if !slices.ContainsFunc(want, func(w Service) bool { return w.Key == h.Key }) {
			changes = append(changes, Change{Kind: RemoveService, Service: Service{Key: h.Key}})
		}
	}
	for _, w := range want {
		w = w.normal()
		at := slices.IndexFunc(have, func(h Service) bool { return h.Key == w.Key })
		if at < 0 {
			changes = append(changes, Change{Kind: AddService, Service: w})
			changes = append(changes, diffServers(w.Key, nil, w.Servers)...)
			continue
		}
		h := have[at].normal()
		if !sameService(h, w) {
			changes = append(changes, Change{Kind: EditService, Service: w})
		}
		changes = append(changes, diffServers(w.Key, h.Servers, w.Servers)...)
	}
	return changes
}

func sameService(a, b Service) bool {
	return a.Scheduler == b.Scheduler && a.Flags == b.Flags && a.Persistence == b.Persistence &&
		a.Granularity == b.Granularity
}

// diffServers needs both lists ordered by address.
func diffServers(k Key, have, want []Server) []Change {
	var changes, removals []Change
	find := func(list []Server, r Server) (int, bool) {
		return slices.BinarySearchFunc(list, r, func(a, b Server) int { return a.Addr.Compare(b.Addr) })
	}
	for _, r := range want {
		at, found := find(have, r)
		switch {
		case !found:
			changes = append(changes, Change{Kind: AddServer, Service: Service{Key: k}, Server: r})
		case have[at] != r:
			changes = append(changes, Change{Kind: EditServer, Service: Service{Key: k}, Server: r})
		}
	}
	for _, r := range have {
		if _, found := find(want, r); !found {
			removals = append(removals, Change{Kind: RemoveServer, Service: Service{Key: k}, Server: r})
		}
	}
	return append(changes, removals...)
}

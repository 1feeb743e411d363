package cluster

import (
	"math"
	"slices"
	"time"
)

const (
	maxTTL  = 7 * 24 * time.Hour
	maxTags = 128 // what the catalog takes
)

func (l *loader) readServices(v *value) {
	l.each(v, func(e entry) {
		l.nameError(e.pos, e.value.path, label(e.key))
		svc := Service{Name: e.key}
		if m, ok := l.mapping(e.value); ok {
			l.readService(m, &svc)
			m.done()
		}
		l.f.Services = append(l.f.Services, svc)
	})
}

func (l *loader) readService(m *mapping, svc *Service) {
	on := m.need("on", `on: "@service"`)
	svc.On, _ = l.nodeRefs(on, l.f)
	if clients := l.withoutAgent(svc.On); len(clients) > 0 {
		l.at(on.pos, on.path, "%s runs no agent, as the role says; only nodes that run Holdfast offer a service", clip(Fold(clients)))
	}
	if n, ok := l.integer(m.need("port", "port: 3142"), 1, math.MaxUint16, ""); ok {
		svc.Port = uint16(n)
	}
	tags := m.get("tags")
	if tags != nil && len(tags.items) > maxTags {
		l.at(tags.pos, tags.path, "%d tags; a service has at most %d", len(tags.items), maxTags)
		tags = nil
	}
	for _, tag := range l.textList(tags) {
		l.nameError(tag.pos, tag.path, label(tag.text))
		if slices.Contains(svc.Tags, tag.text) {
			l.at(tag.pos, tag.path, "tag %q stands twice; keep one", clip(tag.text))
			continue
		}
		svc.Tags = append(svc.Tags, tag.text)
	}
	svc.Address, _ = l.addr(m.get("address"))
	ttl := m.get("ttl")
	if d, ok := l.duration(ttl, 0, maxTTL); ok {
		if d%time.Second != 0 {
			l.at(ttl.pos, ttl.path, "%s; DNS counts a TTL in whole seconds", d)
		}
		svc.TTL = d
	}
	if check := m.get("check"); check != nil {
		svc.Check = Section{v: check, f: l.f}
	}
}

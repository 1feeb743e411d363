package vrrp

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/internal/check"
	"holdfast/internal/state"
)

// How a tracked thing is asked unless the file says otherwise. Once a second
// finds a dead service in 1–2 s, about what VRRP itself takes at its usual
// interval to find a dead node. Two failures in a row: one lost packet or slow
// answer must not move an address. Two successes before it may come back: a
// service that dies while starting would otherwise take the address with it.
const (
	trackEvery = time.Second
	trackRise  = 2
	trackFall  = 2
	maxWeight  = 253 // keepalived's range
)

// trackItem is a tracked thing of a VIP, checked as far as all nodes are alike.
type trackItem struct {
	trackSection
	name   string // Track.Name, unless another of the same name is made otherwise
	weight int
}

// sameAs tells whether two items track the same with the same weight.
func (t trackItem) sameAs(other trackItem) bool {
	return t.Interface == other.Interface && t.Service == other.Service && t.File == other.File && t.Process == other.Process &&
		t.Script.Equal(other.Script) && t.Check.Equal(other.Check) && t.weight == other.weight && t.Reverse == other.Reverse
}

// kinds gives the keys of an item that say what it is.
func (t *trackSection) kinds() []string {
	var kinds []string
	for _, k := range []struct {
		key string
		set bool
	}{
		{"interface", t.Interface != ""}, {"service", t.Service != ""}, {"script", !t.Script.IsZero()},
		{"file", t.File != ""}, {"process", t.Process != ""}, {"check", !t.Check.IsZero()},
	} {
		if k.set {
			kinds = append(kinds, k.key)
		}
	}
	return kinds
}

func (d *vipDecoder) tracks(v *vip) {
	seen := map[string]bool{}
	for i, name := range v.Track {
		seen[name] = true
		if err := d.trackable(v, name, 0); err != nil {
			d.entryErrorf(v, fmt.Sprintf("track[%d]", i), "%v", err)
		}
	}
	for i, t := range v.section.Track {
		at := fmt.Sprintf("track[%d]", i)
		kinds := t.kinds()
		if strings.Contains(v.unread, v.VRRP.At(at).Path()+".") {
			continue
		}
		if len(kinds) != 1 {
			d.errorf(v, at, "needs exactly one of interface, service, script, file, process and check")
			continue
		}
		item := trackItem{trackSection: t}
		d.weight(v, at, kinds[0], &item)
		d.cadence(v, at, kinds[0], t)
		d.item(v, at, kinds[0], &item)
		if kinds[0] == "service" && seen[t.Service] {
			d.errorf(v, at+".service", "%q is tracked already", t.Service)
		}
		seen[t.Service] = true
		v.items = append(v.items, item)
	}
}

func (d *vipDecoder) weight(v *vip, at, kind string, item *trackItem) {
	if kind == "file" {
		item.weight = 1 // keepalived's default
	}
	if item.Weight != nil {
		item.weight = *item.Weight
	}
	if item.weight < -maxWeight || item.weight > maxWeight {
		d.errorf(v, at+".weight", "%d; the range is -%d to %d, 0: what is down does not hold", item.weight, maxWeight, maxWeight)
	}
}

// cadence checks the keys that only some kinds have.
func (d *vipDecoder) cadence(v *vip, at, kind string, t trackSection) {
	probed := kind == "service" || kind == "script"
	refuse := func(key string, set bool) {
		if set {
			d.errorf(v, at+"."+key, "means nothing for %s; leave it out", map[string]string{
				"interface": "an interface, which tells by itself", "file": "a file", "process": "a process",
				"check": "a check, which says it itself",
			}[kind])
		}
	}
	if !probed {
		refuse("rise", t.Rise != 0)
		refuse("fall", t.Fall != 0)
		refuse("timeout", t.Timeout != 0)
	}
	if kind == "interface" || kind == "check" {
		refuse("every", t.Every != 0)
	}
	if t.Every != 0 && (t.Every < check.MinInterval || t.Every > check.MaxInterval) {
		d.errorf(v, at+".every", "%v; the range is %v to %v", t.Every, check.MinInterval, check.MaxInterval)
	}
	if t.Timeout != 0 && (t.Timeout < check.MinTimeout || t.Timeout > check.MaxTimeout) {
		d.errorf(v, at+".timeout", "%v; the range is %v to %v", t.Timeout, check.MinTimeout, check.MaxTimeout)
	}
	if t.Rise < 0 || t.Rise > check.MaxRise {
		d.errorf(v, at+".rise", "%d; the range is 1 to %d", t.Rise, check.MaxRise)
	}
	if t.Fall < 0 || t.Fall > check.MaxFall {
		d.errorf(v, at+".fall", "%d; the range is 1 to %d", t.Fall, check.MaxFall)
	}
}

// item checks what is tracked and names it.
func (d *vipDecoder) item(v *vip, at, kind string, item *trackItem) {
	switch kind {
	case "interface":
		item.name = "interface " + item.Interface
		if !validInterface(item.Interface) {
			d.errorf(v, at+".interface", "%q is no interface's name: at most %d characters, no blank and no slash", item.Interface, maxInterface)
		}
	case "file":
		item.name = "file " + item.File
		if !filepath.IsAbs(item.File) {
			d.errorf(v, at+".file", "%q is not an absolute path", item.File)
		}
	case "process":
		item.name = "process " + item.Process
		if strings.ContainsAny(item.Process, "/ \t\n") {
			d.errorf(v, at+".process", "%q is not the name of a program; write it without its directory", item.Process)
		}
	case "service":
		if err := d.trackable(v, item.Service, item.weight); err != nil {
			d.errorf(v, at+".service", "%v", err)
		}
	case "script":
		d.script(v, at, item)
	case "check":
		if _, err := check.Decode(item.Check, check.Target{Service: "check"}); err != nil {
			d.take(v, at+".check", err)
		}
	}
}

func (d *vipDecoder) script(v *vip, at string, item *trackItem) {
	words, err := words(item.Script)
	if err != nil {
		d.take(v, at+".script", err)
		return
	}
	item.name = scriptTrack + strings.Join(words, " ")
	if len(words) == 0 || !filepath.IsAbs(words[0]) {
		d.errorf(v, at+".script", "begins with no absolute path; write it as in [/usr/local/sbin/ok, -v]")
	}
}

// take notes mistakes that have their places already.
func (d *vipDecoder) take(v *vip, key string, err error) {
	var many cluster.Errors
	var one *cluster.Error
	switch {
	case errors.As(err, &many):
		d.errs = append(d.errs, many...)
	case errors.As(err, &one):
		d.errs = append(d.errs, one)
	default:
		d.errorf(v, key, "%v", err)
	}
}

func words(s cluster.Section) ([]string, error) {
	var list []string
	for _, item := range s.List() {
		var word string
		if err := item.Decode(&word); err != nil {
			return nil, err
		}
		list = append(list, word)
	}
	return list, nil
}

// trackable says what keeps the members from tracking a unit or service. Of the
// units only dns is asked by a question of ours; the others are tracked as a
// service of that name, with its own check.
func (d *vipDecoder) trackable(v *vip, name string, weight int) error {
	svc := serviceOf(d.file, name)
	switch {
	case name == "dns":
		return d.runOnAll(v, name)
	case svc == nil && slices.Contains(cluster.Units(), name):
		return fmt.Errorf("the unit %s can't be asked whether it is well: declare a service %s with a check, and that is tracked", name, name)
	case svc == nil:
		return fmt.Errorf("unknown unit or service %q", name)
	}
	for _, member := range v.Members {
		if !slices.Contains(svc.On, member) {
			return fmt.Errorf("%s is a member of the VIP and does not run %s: it could never hold; take it out of members, or put it into on", member, name)
		}
	}
	if len(v.Members) == 0 {
		return nil
	}
	definitions, err := check.Decode(svc.Check, check.Target{Service: name, Address: exampleAddress, Port: svc.Port})
	switch {
	case err != nil:
		return nil // discovery says so where it stands
	case len(definitions) == 0:
		return fmt.Errorf("%s has no check, so that nobody could tell whether it is well; give it one", name)
	case weight != 0 && len(definitions) > 1:
		return fmt.Errorf("%s has %d checks, which would all add their weight; track it with weight 0, or one check of your own", name, len(definitions))
	}
	for i := range definitions {
		if definitions[i].TTL > 0 {
			return fmt.Errorf("%s reports itself (ttl), which the unit that moves addresses does not hear; track another check of it", name)
		}
	}
	return nil
}

var exampleAddress = netip.AddrFrom4([4]byte{192, 0, 2, 1}) // RFC 5737 §3

func serviceOf(file *cluster.File, name string) *cluster.Service {
	for i := range file.Services {
		if file.Services[i].Name == name {
			return &file.Services[i]
		}
	}
	return nil
}

func (d *vipDecoder) runOnAll(v *vip, unit string) error {
	for _, member := range v.Members {
		n := d.file.Node(member)
		if n == nil {
			continue
		}
		if role := d.file.Role(n.Role); role != nil && !slices.Contains(role.Run, unit) {
			return fmt.Errorf("%s is a member of the VIP and its role %s does not run %s: it could never hold; take it out of members, or put %s into run", member, role.Name, unit, unit)
		}
	}
	return nil
}

// tracks gives a router what it tracks, and the settings the checks and
// watches behind it.
func (b *builder) tracks(v *vip) []Track {
	var tracks []Track
	add := func(name string, item *trackItem) {
		tracks = append(tracks, Track{Name: name, Weight: item.weight, Reverse: item.Reverse, Number: item.File != ""})
	}
	plain := make([]trackItem, 0, len(v.Track)+len(v.items))
	for _, name := range v.Track {
		plain = append(plain, trackItem{trackSection: trackSection{Service: name}})
	}
	for _, item := range append(plain, v.items...) {
		switch {
		case item.Interface != "":
			add(b.watch(Watch{Name: item.name, Kind: WatchInterface, Target: item.Interface}), &item)
		case item.File != "":
			add(b.watch(Watch{Name: item.name, Kind: WatchFile, Target: item.File, Every: cmp.Or(item.Every, trackEvery)}), &item)
		case item.Process != "":
			add(b.watch(Watch{Name: item.name, Kind: WatchProcess, Target: item.Process, Every: cmp.Or(item.Every, trackEvery)}), &item)
		default:
			for _, definition := range b.checks(&item) {
				add(b.check(definition), &item)
			}
		}
	}
	return tracks
}

// watch enters a watch; one of the same name that is made otherwise gives it
// another.
func (b *builder) watch(w Watch) string {
	name := w.Name
	for n := 2; ; n++ {
		i := slices.IndexFunc(b.Watches, func(other Watch) bool { return other.Name == w.Name })
		switch {
		case i < 0:
			b.Watches = append(b.Watches, w)
			return w.Name
		case b.Watches[i] == w:
			return w.Name
		}
		w.Name = fmt.Sprintf("%s (%d)", name, n)
	}
}

func (b *builder) check(d check.Definition) string {
	name := d.ID
	for n := 2; ; n++ {
		d.Name = d.ID
		i := slices.IndexFunc(b.Checks, func(other check.Definition) bool { return other.ID == d.ID })
		switch {
		case i < 0:
			b.Checks = append(b.Checks, d)
			return d.ID
		case b.Checks[i].Equal(d):
			return d.ID
		}
		d.ID = fmt.Sprintf("%s (%d)", name, n)
	}
}

// checks makes the checks of an item for this node.
func (b *builder) checks(item *trackItem) []check.Definition {
	var list []check.Definition
	switch {
	case !item.Script.IsZero():
		argv, _ := words(item.Script) // which was read before
		list = []check.Definition{{ID: item.name, Script: argv}}
	case !item.Check.IsZero():
		list, _ = check.Decode(item.Check, check.Target{Service: "check", Address: b.address()})
		for i := range list {
			list[i].ID = "check " + cmp.Or(list[i].HTTP, list[i].TCP, list[i].DNS, list[i].Process, strings.Join(list[i].Script, " "))
		}
	case item.Service == "dns":
		list = []check.Definition{{ID: "service dns", DNS: b.dnsServer().String(), Query: b.file.VirtualDomain + ". SOA"}}
	default:
		list = b.service(item.Service)
	}
	for i := range list {
		list[i].ServiceID, list[i].Initial = "", state.Critical
		if item.Check.IsZero() {
			item.pace(&list[i])
		}
		list[i].Rise, list[i].Fall = cmp.Or(item.Rise, max(list[i].Rise, trackRise)), cmp.Or(item.Fall, max(list[i].Fall, trackFall))
		list[i] = list[i].WithDefaults()
	}
	return list
}

// pace says how often a check is made: more often than for the catalog, but a
// script as often as its owner thought right.
func (item *trackItem) pace(d *check.Definition) {
	if len(d.Script) == 0 || d.Interval == 0 {
		d.Interval = trackEvery
	}
	d.Interval = cmp.Or(item.Every, d.Interval)
	if d.Timeout == 0 || d.Timeout > d.Interval {
		d.Timeout = d.Interval
	}
	d.Timeout = cmp.Or(item.Timeout, d.Timeout)
}

// service makes a service's own checks, asked at this node's own address: that
// of a VIP would be answered by whoever holds it.
func (b *builder) service(name string) []check.Definition {
	svc := serviceOf(b.file, name)
	list, _ := check.Decode(svc.Check, check.Target{Service: name, Address: b.address(), Port: svc.Port})
	for i := range list {
		list[i].ID = "service " + name
		if len(list) > 1 {
			list[i].ID = fmt.Sprintf("service %s, check %d", name, i+1)
		}
	}
	return list
}

func (b *builder) address() netip.Addr { return b.node.Addresses[b.file.Main().Name] }

// dnsServer is where this node's own DNS server answers: the first of
// dns.listen that is its own or loopback, or port 53 of its address.
func (b *builder) dnsServer() netip.AddrPort {
	own := netip.AddrPortFrom(b.address(), 53)
	var listen []string
	if err := b.file.Section("dns").At("listen").Decode(&listen); err != nil {
		return own // dns says what is wrong with it
	}
	for _, text := range listen {
		at, err := netip.ParseAddrPort(text)
		if addr, bare := netip.ParseAddr(text); bare == nil {
			at, err = netip.AddrPortFrom(addr, 53), nil
		}
		if err != nil {
			continue
		}
		if at.Addr().IsUnspecified() {
			return netip.AddrPortFrom(b.address(), at.Port())
		}
		for _, mine := range b.node.Addresses {
			if at.Addr() == mine {
				return at
			}
		}
		if at.Addr().IsLoopback() {
			return at
		}
	}
	return own
}

package vrrp

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/cluster"
)

// vip is a VIP with its `vrrp:` understood.
type vip struct {
	*cluster.VIP
	entry    cluster.Section // of the file's vips; zero: not known
	section  vipSection
	given    map[string]uint8 // priorities of the file
	checksum Checksum
	main     netip.Prefix // Address
	more     []netip.Prefix
	excluded []netip.Prefix
	hooks    Hooks
	items    []trackItem // of the vrrp section
	unread   string      // the mistakes of what could not be read
}

// advertised are the addresses in the adverts: of IPv6 a link-local one comes
// first (RFC 9568 §5.2.9), where the file has one.
func (v *vip) advertised() []netip.Addr {
	list := []netip.Addr{v.main.Addr()}
	for _, p := range v.more {
		list = append(list, p.Addr())
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int {
		switch {
		case a.IsLinkLocalUnicast() == b.IsLinkLocalUnicast():
			return 0
		case a.IsLinkLocalUnicast() && a.Is6():
			return -1
		}
		return 1
	})
	return list
}

func (v *vip) held() []netip.Prefix {
	return slices.Concat([]netip.Prefix{v.main}, v.more, v.excluded)
}

// decodeVIPs understands all VIPs of a file; it reports all mistakes at once.
func decodeVIPs(file *cluster.File, s cluster.Section) ([]vip, error) {
	d := &vipDecoder{file: file}
	entries := entriesOf(s)
	vips := make([]vip, len(file.VIPs))
	for i := range file.VIPs {
		vips[i] = vip{VIP: &file.VIPs[i], entry: entries[file.VIPs[i].Name]}
		d.decode(&vips[i])
	}
	d.checkTaken(vips)
	d.checkGroups(vips)
	d.checkWires(vips)
	if len(d.errs) > 0 {
		return nil, d.errs
	}
	return vips, nil
}

// entriesOf finds the entry of every VIP, which may stand in a set of them.
func entriesOf(s cluster.Section) map[string]cluster.Section {
	entries := map[string]cluster.Section{}
	for _, key := range s.Keys() {
		names, err := cluster.Expand(key, nil)
		if err != nil {
			continue // cluster has said so
		}
		for _, name := range names {
			entries[name] = s.At(key)
		}
	}
	return entries
}

// vipDecoder collects the mistakes of all VIPs.
type vipDecoder struct {
	file *cluster.File
	errs cluster.Errors
}

// errorf notes a mistake at a key of a VIP's `vrrp:`.
func (d *vipDecoder) errorf(v *vip, key, format string, args ...any) {
	d.errs = append(d.errs, v.VRRP.Errorf(key, format, args...))
}

// entryErrorf notes a mistake at a key of the VIP itself.
func (d *vipDecoder) entryErrorf(v *vip, key, format string, args ...any) {
	d.errs = append(d.errs, v.entry.Errorf(key, format, args...))
}

// own tells whether the VIP itself says a key, not vip_defaults: what does not
// apply to it is a mistake only then.
func (v *vip) own(key string) bool {
	at := v.VRRP.At(key)
	return !at.IsZero() && !strings.HasPrefix(at.Path(), "vip_defaults")
}

func (d *vipDecoder) decode(v *vip) {
	v.section = vipSection{
		Preempt:  true,
		MinTTL:   maxTTL,
		Announce: announceSection{Repeat: 5, Every: time.Second, Refresh: time.Minute},
		Notify:   notifySection{},
		Lease:    defaultLease,
	}
	if v.Address.IsValid() {
		v.section.PrefixLength = v.Address.BitLen()
	}
	if err := v.VRRP.Decode(&v.section); err != nil {
		var many cluster.Errors
		if errors.As(err, &many) {
			d.errs = append(d.errs, many...)
		}
		v.unread = err.Error() // what could be read is looked at all the same
	}
	d.within(v, "startup_delay", v.section.StartupDelay, 0, maxStartupDelay)
	d.within(v, "debounce", v.section.Debounce, 0, maxDebounce)
	d.within(v, "announce.every", v.section.Announce.Every, minAnnounce, maxAnnounce)
	if v.section.Announce.Refresh != 0 {
		d.within(v, "announce.refresh", v.section.Announce.Refresh, minRefresh, maxRefresh)
	}
	if n := v.section.Announce.Repeat; n < 1 || n > maxRepeat {
		d.errorf(v, "announce.repeat", "%d; the range is 1 to %d", n, maxRepeat)
	}
	if name := v.section.Interface; name != "" && !validInterface(name) {
		d.errorf(v, "interface", "%q is no interface's name: at most %d characters, no blank and no slash", name, maxInterface)
	}
	d.members(v)
	d.ttl(v)
	d.version(v)
	d.addresses(v)
	d.priorities(v)
	d.tracks(v)
	d.fence(v)
	v.hooks = decodeHooks(v.section.Notify, func(key, format string, args ...any) {
		d.errorf(v, strings.TrimSuffix("notify."+key, "."), format, args...)
	})
}

// fence checks what holds the addresses under a lease.
func (d *vipDecoder) fence(v *vip) {
	if !v.section.Fenced {
		if v.own("lease") {
			d.errorf(v, "lease", "%v without fenced: true means nothing; leave it out, or fence the VIP", v.section.Lease)
		}
		return
	}
	d.within(v, "lease", v.section.Lease, minLease, maxLease)
	if v.section.Sync != "" {
		d.errorf(v, "fenced", "a fenced VIP can't be in sync group %s: the lease of one can't wait for another's; leave one of the two out, or put all addresses into one VIP (addresses, excluded)", v.section.Sync)
	}
	for name, priority := range v.given {
		if priority == owner {
			d.errorf(v, "fenced", "%s has priority 255, so that the address is its own also without a lease; give it another priority, or leave fenced out", name)
		}
	}
}

func (d *vipDecoder) within(v *vip, key string, value, least, most time.Duration) {
	if value < least || value > most {
		d.errorf(v, key, "%v; the range is %v to %v", value, least, most)
	}
}

func validInterface(name string) bool {
	return len(name) <= maxInterface && name != "." && name != ".." && !strings.ContainsAny(name, "/ \t\n:")
}

func (d *vipDecoder) members(v *vip) {
	if len(v.Members) > maxMembers {
		d.entryErrorf(v, "members", "%d members; at most %d have a priority of their own", len(v.Members), maxMembers)
	}
}

// ttl checks what only unicast may lower: peers in other networks, and
// keepalived, which sends unicast over IPv6 with the kernel's own hop limit.
func (d *vipDecoder) ttl(v *vip) {
	switch n := v.section.MinTTL; {
	case n < 1 || n > maxTTL:
		d.errorf(v, "min_ttl", "%d; the range is 1 to %d", n, maxTTL)
	case n != maxTTL && !v.section.Unicast && v.own("min_ttl"):
		d.errorf(v, "min_ttl", "%d without unicast: multicast never crosses a router, so RFC 9568 §5.1.1.3 wants %d; leave it out", n, maxTTL)
	case !v.section.Unicast:
		v.section.MinTTL = maxTTL
	}
}

// version checks what belongs to one version or family only.
func (d *vipDecoder) version(v *vip) {
	if v.Version == 2 && v.Address.Is6() {
		d.entryErrorf(v, "version", "version 2 knows IPv4 only (RFC 3768 §1), and %s is IPv6; write version: 3", v.Address)
	}
	if v.section.Auth.File != "" && v.Version == 3 && v.own("auth") {
		d.errorf(v, "auth", "version 3 has no passwords (RFC 9568 §9); leave it out, or write version: 2 for a site that needs it")
	}
	switch v.section.Checksum {
	case "", "pseudo-header":
	case "plain":
		v.checksum = Plain
	default:
		d.errorf(v, "checksum", "%q; write pseudo-header, as keepalived sends, or plain, as Cisco and Juniper do", v.section.Checksum)
		return
	}
	if v.section.Checksum != "" && (v.Version == 2 || v.Address.Is6()) && v.own("checksum") {
		d.errorf(v, "checksum", "only version 3 over IPv4 has a choice; leave it out")
	}
}

func (d *vipDecoder) addresses(v *vip) {
	if !v.Address.IsValid() {
		return
	}
	bits := v.Address.BitLen()
	if v.section.PrefixLength < 1 || v.section.PrefixLength > bits {
		d.errorf(v, "prefix_length", "%d; the range is 1 to %d bits", v.section.PrefixLength, bits)
		return
	}
	v.main = netip.PrefixFrom(v.Address, v.section.PrefixLength)
	v.more = d.prefixes(v, "addresses", v.section.Addresses, true)
	v.excluded = d.prefixes(v, "excluded", v.section.Excluded, false)
	most := maxAddresses
	if v.Address.Is6() {
		most = maxAddresses6
	}
	if n := 1 + len(v.more); n > most {
		d.errorf(v, "addresses", "%d addresses with the VIP's own; an advert has room for %d: the rest can be excluded", n, most)
	}
}

// prefixes reads addresses with or without a length; without, they are single.
func (d *vipDecoder) prefixes(v *vip, key string, texts []string, sameFamily bool) []netip.Prefix {
	var list []netip.Prefix
	for i, text := range texts {
		at := fmt.Sprintf("%s[%d]", key, i)
		if v.VRRP.At(at).IsZero() {
			at = key // one folded text
		}
		p, err := parseHeld(text)
		switch {
		case err != nil:
			d.errorf(v, at, "%v", err)
		case sameFamily && p.Addr().Is4() != v.Address.Is4():
			d.errorf(v, at, "%s is of another family than %s: a virtual router advertises one; put it into excluded, or make a VIP of its own", p.Addr(), v.Address)
		default:
			list = append(list, p)
		}
	}
	return list
}

func parseHeld(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		addr, addrErr := netip.ParseAddr(text)
		if addrErr != nil {
			return netip.Prefix{}, fmt.Errorf("%q is no address; write it as in 10.1.0.105, 10.1.0.105/24 or fd00:1::5", text)
		}
		p = netip.PrefixFrom(addr.WithZone(""), addr.BitLen())
	}
	switch addr := p.Addr(); {
	case addr.Is4In6() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback():
		return netip.Prefix{}, fmt.Errorf("%s is not the address of a host", addr)
	case p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("%s has length 0; the range is 1 to %d bits", p, addr.BitLen())
	}
	return p, nil
}

func (d *vipDecoder) priorities(v *vip) {
	v.given = map[string]uint8{}
	owner := map[uint8]string{}
	for _, set := range slices.Sorted(maps.Keys(v.section.Priority)) {
		at := fmt.Sprintf("priority[%q]", set)
		priority := v.section.Priority[set]
		if priority < 1 || priority > ownerPriority {
			d.errorf(v, at, "%d; the range is 1 to 254, or 255 for the node that owns the address", priority)
			continue
		}
		names, err := d.file.Expand(set)
		if err != nil {
			d.errorf(v, at, "%v", err)
			continue
		}
		for _, name := range names {
			other, twice := owner[uint8(priority)]
			switch {
			case v.Members != nil && !slices.Contains(v.Members, name):
				d.errorf(v, at, "%s is no member of the VIP", name)
			case v.given[name] != 0:
				d.errorf(v, at, "%s has a priority already", name)
			case twice:
				d.errorf(v, at, "%s and %s have %d both, so that both would act at once; give each its own", other, name, priority)
			default:
				v.given[name], owner[uint8(priority)] = uint8(priority), name
			}
		}
	}
	d.checkPrefer(v)
}

// checkPrefer refuses a preference that the priorities contradict.
func (d *vipDecoder) checkPrefer(v *vip) {
	if v.Prefer == "" || len(v.given) == 0 || v.Members == nil { // what could not be read was said
		return
	}
	numbers := ranks(len(v.Members), v.given, 1)
	for name, priority := range v.given {
		if len(numbers) == 0 || priority != numbers[0] || name == v.Prefer {
			continue
		}
		d.errorf(v, "priority", "%s comes first with %d, and the VIP prefers %s; drop one of the two", name, priority, v.Prefer)
	}
	if given := v.given[v.Prefer]; given != 0 && len(numbers) > 0 && given != numbers[0] {
		d.errorf(v, "priority", "%s has %d, which is not the highest, and the VIP prefers it; drop one of the two", v.Prefer, given)
	}
}

// readSecret reads a file without the line end.
func readSecret(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	data = bytes.TrimRight(data, "\r\n")
	if len(data) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return data, nil
}

// decodeHooks understands a `notify:` mapping.
func decodeHooks(s notifySection, errorf func(key, format string, args ...any)) Hooks {
	h := Hooks{User: s.User, Timeout: s.Timeout}
	for _, item := range s.Script.List() {
		var word string
		if err := item.Decode(&word); err != nil {
			errorf("script", "write a program and its arguments, as in [/usr/local/sbin/notify, -v]")
			return h
		}
		h.Notify = append(h.Notify, word)
	}
	if len(h.Notify) > 0 && !filepath.IsAbs(h.Notify[0]) {
		errorf("script", "%q is not an absolute path", h.Notify[0])
	}
	for state, dir := range map[string]string{"master": s.Master, "backup": s.Backup, "fault": s.Fault, "stop": s.Stop} {
		if dir == "" {
			continue
		}
		if !filepath.IsAbs(dir) {
			errorf(state, "%q is not the absolute path of a directory of programs", dir)
			continue
		}
		if h.Dirs == nil {
			h.Dirs = map[string]string{}
		}
		h.Dirs[state] = filepath.Clean(dir)
	}
	if h.Timeout == 0 {
		h.Timeout = 30 * time.Second
	}
	if h.Timeout < minHookTimeout || h.Timeout > maxHookTimeout {
		errorf("timeout", "%v; the range is %v to %v", h.Timeout, minHookTimeout, maxHookTimeout)
	}
	if strings.ContainsAny(h.User, " \t\n:/") {
		errorf("user", "%q is no user's name", h.User)
	}
	return h
}

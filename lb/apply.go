package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"holdfast/internal/kernel/firewall"
	"holdfast/internal/kernel/ipvs"
	"holdfast/internal/kernel/link"
	"holdfast/internal/kernel/sysctl"
)

// tables is what is needed of internal/kernel/ipvs.
type tables interface {
	Set([]ipvs.Service) ([]ipvs.Change, error)
	SetDaemons([]ipvs.Daemon) (changed bool, err error)
}

// addresses is what is needed of internal/kernel/link.
type addresses interface {
	Links() ([]link.Link, error)
	Addrs() ([]link.Addr, error)
	Add(link.Addr) error
	Remove(link.Addr) error
}

// sysctls is what is needed of internal/kernel/sysctl.
type sysctls interface {
	Get(name string) (int, error)
	Set(name string, value int) (changed bool, err error)
	Effective(f sysctl.Family, iface, key string) (int, error)
}

// applier makes the kernel what a plan says. Applying the same plan again
// changes nothing. It is not for several goroutines at once.
type applier struct {
	tables    tables
	addresses addresses
	sysctls   sysctls
	firewall  firewall.Firewall
	sync      netip.Addr   // this node's address on the daemons' interface
	saved     *saved       // what sysctls were before
	kept      []netip.Addr // the addresses that stand on lo as they should
}

// apply goes through the plan from the top, and tells what it changed. What
// would be unsafe without what failed is not done; all the rest is.
func (a *applier) apply(p Plan) (changes []string, err error) {
	links, err := a.addresses.Links()
	if err != nil {
		return nil, err
	}
	c := &changer{applier: a, links: links}
	c.setSysctls(p.Sysctls)
	hushed := c.hush(p)
	c.verifyPaths(p)
	c.hide(p.Hidden, hushed)
	passed, err := a.firewall.Set(p.Firewall)
	c.fail(err)
	c.changes = append(c.changes, passed...)
	served := c.daemons(p.Daemons)
	if !p.Directs && !served {
		// Without the backup daemon BackupOnly means nothing: these tables
		// would send on what another director has sent here.
		p.Tables = nil
	}
	made, err := a.tables.Set(p.Tables)
	c.fail(err)
	for _, m := range made {
		c.say("%v", m)
	}
	c.restore(p.Sysctls)
	return c.changes, errors.Join(c.errs...)
}

// changer is one application of a plan.
type changer struct {
	*applier
	links   []link.Link
	changes []string
	errs    []error
}

func (c *changer) say(format string, args ...any) {
	c.changes = append(c.changes, fmt.Sprintf(format, args...))
}

func (c *changer) fail(err error) {
	if err != nil {
		c.errs = append(c.errs, err)
	}
}

func (c *changer) setSysctls(want []Sysctl) {
	for _, w := range want {
		old, err := c.sysctls.Get(w.Name)
		if err == nil && old != w.Value {
			err = c.saved.remember(w.Name, old)
		}
		if err == nil {
			var changed bool
			if changed, err = c.sysctls.Set(w.Name, w.Value); changed {
				c.say("net/%s from %d to %d", w.Name, old, w.Value)
			}
		}
		c.fail(err)
	}
}

// restore gives those sysctls back what they were that the plan needs no more.
func (c *changer) restore(want []Sysctl) {
	for name, old := range c.saved.values {
		if slices.ContainsFunc(want, func(w Sysctl) bool { return w.Name == name }) {
			continue
		}
		if changed, err := c.sysctls.Set(name, old); err != nil {
			c.fail(err)
			continue
		} else if changed {
			c.say("net/%s back to %d", name, old)
		}
		c.fail(c.saved.forget(name))
	}
}

// hush verifies that no interface answers ARP for a hidden address, or speaks
// of it. The kernel takes the greater of an interface's value and that of
// "all", so a greater one of the interface may spoil ours.
func (c *changer) hush(p Plan) bool {
	if !slices.ContainsFunc(p.Hidden, func(a netip.Prefix) bool { return a.Addr().Is4() }) {
		return true
	}
	good := true
	for _, l := range c.links {
		if l.Kind == link.Loopback {
			continue
		}
		ignore, err := c.sysctls.Effective(sysctl.IPv4, l.Name, "arp_ignore")
		if err != nil || ignore != 1 && ignore != 2 {
			good = false
			c.fail(errors.Join(err, fmt.Errorf("lb: arp_ignore of %s is %d; 1 or 2 hides the virtual addresses and shows the interface's own", l.Name, ignore)))
		}
		announce, err := c.sysctls.Effective(sysctl.IPv4, l.Name, "arp_announce")
		if err != nil || announce != 2 {
			good = false
			c.fail(errors.Join(err, fmt.Errorf("lb: arp_announce of %s is %d; 2 is right", l.Name, announce)))
		}
	}
	return good
}

// verifyPaths tells when answers to path checks are thrown away: strict
// filtering takes an own address as a source for spoofed, whatever accept_local
// says.
func (c *changer) verifyPaths(p Plan) {
	if !slices.ContainsFunc(p.Sysctls, func(s Sysctl) bool { return s.Name == acceptLocal }) {
		return
	}
	for _, l := range c.links {
		if l.Kind == link.Loopback {
			continue
		}
		if strict, err := c.sysctls.Effective(sysctl.IPv4, l.Name, "rp_filter"); err != nil || strict == 1 {
			c.fail(errors.Join(err, fmt.Errorf("lb: rp_filter of %s is %d; 0 or 2 lets the answers to path checks in", l.Name, strict)))
		}
	}
}

// hide puts addresses on lo and takes those of ours away that are there in
// vain. When ARP is not silent, IPv4 addresses are not added.
func (c *changer) hide(want []netip.Prefix, hushed bool) {
	c.kept = nil
	at := slices.IndexFunc(c.links, func(l link.Link) bool { return l.Kind == link.Loopback })
	if at < 0 {
		c.fail(errors.New("lb: there is no loopback interface"))
		return
	}
	lo := c.links[at].Index
	there, err := c.addresses.Addrs()
	if err != nil {
		c.fail(err)
		return
	}
	for _, prefix := range want {
		found := slices.ContainsFunc(there, func(a link.Addr) bool { return a.Link == lo && a.Prefix == prefix })
		if prefix.Addr().Is4() && !hushed {
			continue
		}
		if !found {
			if err := c.addresses.Add(link.Addr{Link: lo, Prefix: prefix}); err != nil {
				c.fail(err)
				continue
			}
			c.say("add %v to lo", prefix)
		}
		c.kept = append(c.kept, prefix.Addr())
	}
	for _, a := range there {
		if a.Link != lo || a.Protocol != link.Protocol || slices.Contains(want, a.Prefix) {
			continue
		}
		if err := c.addresses.Remove(a); err != nil {
			c.fail(err)
			continue
		}
		c.say("remove %v from lo", a.Prefix)
	}
}

// daemons tells whether they run as they should.
func (c *changer) daemons(want []ipvs.Daemon) bool {
	if len(want) > 0 {
		name, err := c.syncInterface()
		if err != nil {
			c.fail(err)
			return false
		}
		want = slices.Clone(want)
		for i := range want {
			want[i].Interface = name
		}
	}
	changed, err := c.tables.SetDaemons(want)
	c.fail(err)
	if changed {
		c.say("synchronisation daemons: %v", want)
	}
	return err == nil && len(want) > 0
}

// syncInterface is the one that has the node's address.
func (c *changer) syncInterface() (string, error) {
	addrs, err := c.addresses.Addrs()
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		i := slices.IndexFunc(c.links, func(l link.Link) bool { return l.Index == a.Link })
		if a.Prefix.Addr() == c.sync && i >= 0 {
			return c.links[i].Name, nil
		}
	}
	return "", fmt.Errorf("lb: no interface has %v, on which directors are to tell each other their connections", c.sync)
}
